/**
 * A network on loopback: so fast a connection, so long a way, and a count of what
 * crosses it.
 *
 * @module
 */

/** What one connection carries where a network holds it back, in bytes a second. */
export const RATE = 60 * 1024 * 1024;

/** What the network is like. */
export interface WireOptions {
  /** The most that one connection carries, in bytes a second. @default {Infinity} */
  rate?: number;
  /** Time that a round trip takes at least, in milliseconds. @default {0} */
  roundTripMs?: number;
}

/** A running network. */
export interface Wire extends AsyncDisposable {
  /** Address and port, in place of the server's. */
  host: string;
  /** Bytes that the server has sent so far. */
  received(): number;
  /** Cuts every connection when the server has sent so many bytes in all. */
  cutAt(bytes: number): void;
}

/** Starts a network in front of a server. */
export function startWire(server: string, options: WireOptions = {}): Wire {
  const { rate = Infinity, roundTripMs = 0 } = options;
  const [hostname, port] = server.split(":");
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const open = new Set<Deno.TcpConn>();
  let received = 0;
  let limit = Infinity;

  const cutAll = () => {
    limit = Infinity;
    open.forEach(close);
  };
  function close(connection: Deno.TcpConn) {
    open.delete(connection);
    try {
      connection.close();
    } catch {
      // The other direction has closed it.
    }
  }
  async function serve(client: Deno.TcpConn) {
    const upstream = await Deno.connect({ hostname, port: Number(port) });
    open.add(client).add(upstream);
    const delayMs = roundTripMs / 2;
    await Promise.all([
      relay(client, upstream, { rate: Infinity, delayMs, onBytes: () => {} }),
      relay(upstream, client, {
        rate,
        delayMs,
        onBytes(count) {
          received += count;
          if (received >= limit) cutAll();
        },
      }),
    ].map((way) => way.catch(() => {}))).finally(() => {
      close(client);
      close(upstream);
    });
  }
  const served = new Set<Promise<void>>();
  const accepting = (async () => {
    for await (const client of listener) {
      served.add(serve(client).catch(() => close(client)));
    }
  })();
  return {
    host: `127.0.0.1:${listener.addr.port}`,
    received: () => received,
    cutAt: (bytes) => limit = received + bytes,
    async [Symbol.asyncDispose]() {
      listener.close();
      open.forEach(close);
      await accepting;
      await Promise.all(served);
    },
  };
}

interface RelayOptions {
  rate: number;
  delayMs: number;
  onBytes: (count: number) => void;
}

/** Carries one direction; what is on the way waits in a queue. */
async function relay(
  from: Deno.TcpConn,
  to: Deno.TcpConn,
  { rate, delayMs, onBytes }: RelayOptions,
) {
  const buffer = new Uint8Array(128 * 1024);
  let free = performance.now();
  let sending = Promise.resolve();
  const waits = (until: number) => {
    const ms = until - performance.now();
    // A timer is late by a millisecond or more: small debts are carried on.
    return ms > 2 ? new Promise((done) => setTimeout(done, ms)) : undefined;
  };
  while (true) {
    const count = await from.read(buffer);
    if (count === null) break;
    const bytes = delayMs > 0
      ? buffer.slice(0, count)
      : buffer.subarray(0, count);
    free = Math.max(free, performance.now() - 20) + count / rate * 1000;
    const due = performance.now() + delayMs;
    const send = async () => {
      if (delayMs > 0) await waits(due);
      for (let at = 0; at < count;) at += await to.write(bytes.subarray(at));
      onBytes(count);
    };
    if (delayMs > 0) {
      sending = sending.then(send);
      sending.catch(() => {});
    } else await send();
    await waits(free);
  }
  await sending;
  await to.closeWrite();
}
