/**
 * An HTTPS proxy, through which the real oras reaches a registry on loopback under
 * another host name.
 */

/** A running proxy for HTTPS. */
export interface Tunnel extends AsyncDisposable {
  /** Environment variables that make a program use it. */
  readonly env: Record<string, string>;
  /** The requested hosts, in order, as `name:port`. */
  readonly asked: string[];
}

/**
 * Starts a CONNECT proxy for `HTTPS_PROXY`. It maps the given hosts to loopback and
 * rejects all others, so that nothing leaves this host.
 *
 * @param hosts For instance `{ "ghcr.io:443": "127.0.0.1:5000" }`.
 * @returns The running proxy, to be disposed of.
 */
export function startTunnel(hosts: Record<string, string>): Tunnel {
  const asked: string[] = [];
  const open = new Set<Deno.TcpConn>();
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });

  async function serve(client: Deno.TcpConn): Promise<void> {
    const host = await readConnect(client);
    asked.push(host);
    if (!Object.hasOwn(hosts, host)) {
      return await say(client, "403 Forbidden");
    }
    const [hostname, port] = hosts[host].split(":");
    const server = await Deno.connect({ hostname, port: Number(port) });
    open.add(server);
    await say(client, "200 Connection established");
    await Promise.all([
      client.readable.pipeTo(server.writable),
      server.readable.pipeTo(client.writable),
    ]).catch(() => close(server));
  }

  function close(connection: Deno.TcpConn): void {
    open.delete(connection);
    try {
      connection.close();
    } catch {
      // The pipe has already closed it.
    }
  }

  const served: Promise<void>[] = [];
  const accepting = (async () => {
    for await (const client of listener) {
      open.add(client);
      served.push(serve(client).catch(() => {}).finally(() => close(client)));
    }
  })();
  const address = `http://127.0.0.1:${listener.addr.port}`;
  return {
    env: { HTTPS_PROXY: address, https_proxy: address },
    asked,
    async [Symbol.asyncDispose]() {
      listener.close();
      open.forEach(close);
      await accepting;
      await Promise.all(served);
    },
  };
}

/** Reads `CONNECT name:port HTTP/1.1` and the headers after it. */
async function readConnect(client: Deno.TcpConn): Promise<string> {
  const buffer = new Uint8Array(4096);
  let head = "";
  while (!head.endsWith("\r\n\r\n")) {
    const size = await client.read(buffer);
    if (size === null || head.length > 10_000) throw new Error("No request");
    head += new TextDecoder().decode(buffer.subarray(0, size));
  }
  return head.match(/^CONNECT (\S+) /)?.[1] ?? "";
}

async function say(client: Deno.TcpConn, status: string): Promise<void> {
  await client.write(new TextEncoder().encode(`HTTP/1.1 ${status}\r\n\r\n`));
}
