/**
 * An HTTPS server that misbehaves as a test says: it writes any bytes and closes
 * connections without a TLS close_notify.
 */
import type { Certificate } from "./certificates.ts";

/** A request, with functions to answer. */
export interface TlsExchange {
  /** Counts requests, from 1. */
  number: number;
  /** The path. */
  path: string;
  /** The headers, with names in lower case. */
  headers: Map<string, string>;
  /** Writes the status line and headers. */
  head(status: number, headers: Record<string, string | number>): Promise<void>;
  /** Writes bytes of the body. */
  body(bytes: Uint8Array): Promise<void>;
  /** Waits until the client closes the connection. */
  stall(): Promise<void>;
}

/** A running server. */
export interface TlsServer extends AsyncDisposable {
  /** Its address, without a path. */
  url: string;
  /** Every request so far. */
  requests: TlsExchange[];
}

/** The first byte of the requested range; 0 without a range. */
export function rangeStart({ headers }: TlsExchange): number {
  const [, from] = /^bytes=(\d+)-\d*$/.exec(headers.get("range") ?? "") ?? [];
  return Number(from ?? 0);
}

/**
 * Starts a server that closes each connection after one request.
 *
 * @param certificate Its certificate.
 * @param answer Answers a request.
 */
export async function startTlsServer(
  certificate: Certificate,
  answer: (exchange: TlsExchange) => Promise<void>,
): Promise<TlsServer> {
  const listener = Deno.listenTls({
    hostname: "127.0.0.1",
    port: 0,
    cert: await Deno.readTextFile(certificate.certFile),
    key: await Deno.readTextFile(certificate.keyFile),
    alpnProtocols: ["http/1.1"],
  });
  const requests: TlsExchange[] = [];
  const open = new Set<Deno.TlsConn>();
  const serve = async (connection: Deno.TlsConn) => {
    open.add(connection);
    try {
      const exchange = await readRequest(connection);
      if (!exchange) return;
      requests.push(exchange);
      exchange.number = requests.length;
      await answer(exchange);
      // Bytes may still be in transit, so let the client close first.
      await connection.closeWrite();
      await exchange.stall();
    } catch {
      // The client has closed the connection.
    } finally {
      open.delete(connection);
      try {
        connection.close();
      } catch {
        // Already closed.
      }
    }
  };
  const serving = new Set<Promise<void>>();
  const accepting = (async () => {
    while (true) {
      const connection = await listener.accept().catch((error) => {
        if (error instanceof Deno.errors.BadResource) return undefined;
        // The TLS handshake failed.
        return null;
      });
      if (connection === undefined) return;
      if (connection !== null) serving.add(serve(connection));
    }
  })();
  return {
    url: `https://127.0.0.1:${listener.addr.port}`,
    requests,
    async [Symbol.asyncDispose]() {
      listener.close();
      await accepting;
      for (const connection of open) connection.close();
      await Promise.all(serving);
    },
  };
}

async function readRequest(
  connection: Deno.TlsConn,
): Promise<TlsExchange | undefined> {
  const decoder = new TextDecoder();
  const chunk = new Uint8Array(4096);
  let text = "";
  while (!text.includes("\r\n\r\n")) {
    const count = await connection.read(chunk);
    if (count === null) return undefined;
    text += decoder.decode(chunk.subarray(0, count), { stream: true });
  }
  const [first, ...lines] = text.split("\r\n\r\n")[0].split("\r\n");
  const write = async (bytes: Uint8Array) => {
    for (let at = 0; at < bytes.length;) {
      at += await connection.write(bytes.subarray(at));
    }
  };
  return {
    number: 0,
    path: first.split(" ")[1],
    headers: new Map(lines.map((line) => {
      const colon = line.indexOf(":");
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
    })),
    head(status, headers) {
      const fields = Object.entries({ connection: "close", ...headers })
        .map(([name, value]) => `${name}: ${value}\r\n`);
      const head = `HTTP/1.1 ${status} Status\r\n${fields.join("")}\r\n`;
      return write(new TextEncoder().encode(head));
    },
    body: write,
    async stall() {
      while (await connection.read(chunk) !== null);
    },
  };
}
