/**
 * Simulates a network on loopback: limits bandwidth per connection, adds latency, and
 * counts bytes.
 */

/** Bandwidth of a throttled connection, in bytes per second. */
export const THROTTLED_BYTES_PER_S = 60 * 1024 * 1024;

export interface NetworkOptions {
  /** Bandwidth of a connection, in bytes per second. @default {Infinity} */
  rate?: number;
  /** Whether the connections share that bandwidth. @default {false} */
  isShared?: boolean;
  /** Minimum round-trip time, in milliseconds. @default {0} */
  roundTripMs?: number;
}

export interface ThrottledNetwork extends AsyncDisposable {
  /** Address and port to use instead of the server's. */
  host: string;
  /** Bytes that the server has sent so far. */
  received(): number;
  /** Closes every connection once the server has sent so many bytes in total. */
  cutAt(bytes: number): void;
  /** Stalls every connection once the server has sent so many bytes in total. */
  holdAt(bytes: number): HeldTransfer;
}

export interface HeldTransfer {
  /** Settles when the limit is reached. */
  reached: Promise<void>;
  /** Ends the stall. */
  release(): void;
}

/** Starts a network in front of a server. */
export function startThrottledNetwork(
  server: string,
  options: NetworkOptions = {},
): ThrottledNetwork {
  const { rate = Infinity, isShared = false, roundTripMs = 0 } = options;
  const sharedLink = { freeAt: 0 };
  const [hostname, port] = server.split(":");
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const open = new Set<Deno.TcpConn>();
  let received = 0;
  let limit = Infinity;
  let held = { at: Infinity, reached: () => {}, released: Promise.resolve() };

  const cutAll = () => {
    limit = Infinity;
    open.forEach(close);
  };
  function close(connection: Deno.TcpConn) {
    open.delete(connection);
    try {
      connection.close();
    } catch {
      // The other direction has already closed it.
    }
  }
  async function serve(client: Deno.TcpConn) {
    const upstream = await Deno.connect({ hostname, port: Number(port) });
    open.add(client).add(upstream);
    const delayMs = roundTripMs / 2;
    await Promise.all([
      relayBytes(client, upstream, {
        rate: Infinity,
        link: { freeAt: 0 },
        delayMs,
        onBytes: () => {},
      }),
      relayBytes(upstream, client, {
        rate,
        link: isShared ? sharedLink : { freeAt: 0 },
        delayMs,
        onBytes(count) {
          received += count;
          if (received >= limit) cutAll();
          if (received < held.at) return;
          held.reached();
          return held.released;
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
    holdAt(bytes) {
      const [reached, released] = [0, 1].map(() =>
        Promise.withResolvers<void>()
      );
      held = {
        at: received + bytes,
        reached: reached.resolve,
        released: released.promise,
      };
      return { reached: reached.promise, release: released.resolve };
    },
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
  /** When the bytes so far have passed. */
  link: { freeAt: number };
  delayMs: number;
  /** Reading continues when the promise settles. */
  onBytes: (count: number) => Promise<void> | void;
}

/** Relays one direction; delayed bytes wait in a queue. */
async function relayBytes(
  from: Deno.TcpConn,
  to: Deno.TcpConn,
  { rate, link, delayMs, onBytes }: RelayOptions,
) {
  const buffer = new Uint8Array(128 * 1024);
  let sending = Promise.resolve();
  const waits = (until: number) => {
    const ms = until - performance.now();
    // Timers are late by a millisecond or more, so accumulate small waits.
    return ms > 2 ? new Promise((done) => setTimeout(done, ms)) : undefined;
  };
  while (true) {
    const count = await from.read(buffer);
    if (count === null) break;
    const bytes = delayMs > 0
      ? buffer.slice(0, count)
      : buffer.subarray(0, count);
    link.freeAt = Math.max(link.freeAt, performance.now() - 20) +
      count / rate * 1000;
    const due = performance.now() + delayMs;
    const send = async () => {
      if (delayMs > 0) await waits(due);
      for (let at = 0; at < count;) at += await to.write(bytes.subarray(at));
      await onBytes(count);
    };
    if (delayMs > 0) {
      sending = sending.then(send);
      sending.catch(() => {});
    } else await send();
    await waits(link.freeAt);
  }
  await sending;
  await to.closeWrite();
}
