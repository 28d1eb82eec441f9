/**
 * An HTTPS server that misbehaves as it is told: it writes bytes of its own
 * choice, and breaks off without a farewell.
 *
 * @module
 */
import type { Certificate } from "./certificates.ts";

/** A request, and the connection to answer on. */
export interface Exchange {
  /** Counts requests, from 1. */
  number: number;
  /** The path. */
  path: string;
  /** The headers, with names in lower case. */
  headers: Map<string, string>;
  /** Writes a head with a status and headers. */
  head(status: number, headers: Record<string, string | number>): Promise<void>;
  /** Writes bytes of the body. */
  body(bytes: Uint8Array): Promise<void>;
  /** Does nothing, until the client hangs up. */
  stall(): Promise<void>;
}

/** A running server. */
export interface TlsServer extends AsyncDisposable {
  /** Its address, without a path. */
  url: string;
  /** Every request so far. */
  requests: Exchange[];
}

/** The position that a request asks from; 0 for the whole. */
export function fromOf({ headers }: Exchange): number {
  const [, from] = /^bytes=(\d+)-$/.exec(headers.get("range") ?? "") ?? [];
  return Number(from ?? 0);
}

/**
 * Starts a server. A connection serves one request; it is cut when the answer
 * is done.
 *
 * @param certificate Its certificate.
 * @param answer Answers a request.
 */
export async function startTlsServer(
  certificate: Certificate,
  answer: (exchange: Exchange) => Promise<void>,
): Promise<TlsServer> {
  const listener = Deno.listenTls({
    hostname: "127.0.0.1",
    port: 0,
    cert: await Deno.readTextFile(certificate.certFile),
    key: await Deno.readTextFile(certificate.keyFile),
    alpnProtocols: ["http/1.1"],
  });
  const requests: Exchange[] = [];
  const open = new Set<Deno.TlsConn>();
  const serve = async (connection: Deno.TlsConn) => {
    open.add(connection);
    try {
      const exchange = await readRequest(connection);
      if (!exchange) return;
      requests.push(exchange);
      exchange.number = requests.length;
      await answer(exchange);
      // What was written may be on its way yet: the client hangs up first.
      await connection.closeWrite();
      await exchange.stall();
    } catch {
      // The client has hung up.
    } finally {
      open.delete(connection);
      try {
        connection.close();
      } catch {
        // It is closed already.
      }
    }
  };
  const serving = new Set<Promise<void>>();
  const accepting = (async () => {
    while (true) {
      const connection = await listener.accept().catch((error) => {
        if (error instanceof Deno.errors.BadResource) return undefined;
        // A handshake that failed.
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
): Promise<Exchange | undefined> {
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
