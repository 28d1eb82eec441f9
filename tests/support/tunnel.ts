/**
 * Lets the real oras reach a registry on loopback under another host's name.
 *
 * @module
 */

/** A running proxy for HTTPS. */
export interface Tunnel extends AsyncDisposable {
  /** What makes a program use it, as environment variables. */
  readonly env: Record<string, string>;
  /** The hosts that were asked for so far, in order, as `name:port`. */
  readonly asked: string[];
}

/**
 * Starts a proxy as `HTTPS_PROXY` names one. It connects the hosts it is given
 * to places on loopback, and refuses all others, so that nothing leaves the
 * machine.
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
      // The pipe has closed it.
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
