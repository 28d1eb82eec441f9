/**
 * A server of one blob on loopback that answers ranges as it is told: where a
 * real registry is too well-behaved.
 *
 * @module
 */
import { sha256 } from "../../lib/system/digest.ts";

/** A request for bytes of the blob. */
export interface BlobRequest {
  /** Counts requests, from 1. */
  number: number;
  /** The request itself. */
  request: Request;
  /** The first byte that is asked for. */
  from: number;
  /** The byte after the last that is asked for. */
  to: number;
  /** The right answer, to send or to spoil. */
  right(): Response;
}

/** A running server. */
export interface BlobServer extends AsyncDisposable {
  /** Its address, without a path. */
  origin: string;
  /** The blob. */
  bytes: Uint8Array<ArrayBuffer>;
  /** `sha256:` and the digest in hex. */
  digest: string;
  /** Bytes that are asked for, as `from-to`, in order. */
  asked: string[];
  /** Bytes that were sent as bodies. */
  sent(): number;
  /** How many bodies are being sent at most at the same time. */
  peak(): number;
}

/** What {@linkcode startBlobServer} takes. */
export interface BlobServerOptions {
  /** Size of the blob, in bytes. */
  size: number;
  /** Answers a request; `undefined` for the right answer. */
  answer?: (
    request: BlobRequest,
  ) => Response | undefined | Promise<Response | undefined>;
  /** Where it listens. @default {"127.0.0.1"} */
  hostname?: string;
  /** The port. @default {0} any that is free */
  port?: number;
  /** Another server's blob. @default {undefined} random bytes */
  bytes?: Uint8Array<ArrayBuffer>;
}

/** Starts a server; its blob is at any path. */
export async function startBlobServer(
  options: BlobServerOptions,
): Promise<BlobServer> {
  const { size, answer, hostname = "127.0.0.1", port = 0 } = options;
  const bytes = options.bytes ?? randomBytes(size);
  const digest = `sha256:${await sha256(once(bytes))}`;
  const asked: string[] = [];
  const closing = new AbortController();
  let [sent, open, peak] = [0, 0, 0];

  /** Sends a body in chunks, and counts. */
  const counted = (body: ReadableStream<Uint8Array>) => {
    peak = Math.max(peak, ++open);
    let ended = false;
    const end = () => {
      if (!ended) open--;
      ended = true;
    };
    const reader = body.getReader();
    return new ReadableStream<Uint8Array>({
      async pull(controller) {
        try {
          const { done, value } = await reader.read();
          if (done) {
            end();
            return controller.close();
          }
          sent += value.length;
          controller.enqueue(value);
        } catch (error) {
          end();
          throw error;
        }
      },
      cancel(reason) {
        end();
        return reader.cancel(reason);
      },
    });
  };

  const server = Deno.serve(
    { hostname, port, signal: closing.signal, onListen: () => {} },
    async (request) => {
      const range = /^bytes=(\d+)-(\d+)$/.exec(
        request.headers.get("range") ?? "",
      );
      const from = Number(range?.[1] ?? 0);
      const to = Number(range?.[2] ?? size - 1) + 1;
      asked.push(`${from}-${to}`);
      const right = () => rangeResponse(bytes, from, to);
      const number = asked.length;
      const given = { number, request, from, to, right };
      const response = await answer?.(given) ?? right();
      const { status, headers, body } = response;
      return new Response(body && counted(body), { status, headers });
    },
  );
  return {
    origin: `http://${hostname}:${server.addr.port}`,
    bytes,
    digest,
    asked,
    sent: () => sent,
    peak: () => peak,
    async [Symbol.asyncDispose]() {
      closing.abort();
      await server.finished;
    },
  };
}

/** A right 206. */
export function rangeResponse(
  bytes: Uint8Array<ArrayBuffer>,
  from: number,
  to: number,
): Response {
  return new Response(chunked(bytes.subarray(from, to)), {
    status: 206,
    headers: {
      "content-range": `bytes ${from}-${to - 1}/${bytes.length}`,
      "content-length": String(to - from),
    },
  });
}

/** A body of chunks; `pauseMs` before each, and an error at the end of a cut one. */
export function chunked(
  bytes: Uint8Array<ArrayBuffer>,
  { pauseMs = 0, end = "close" }: {
    pauseMs?: number;
    end?: "close" | "cut" | "stall";
  } = {},
): ReadableStream<Uint8Array> {
  let at = 0;
  let timer: ReturnType<typeof setTimeout>;
  return new ReadableStream({
    async pull(controller) {
      if (pauseMs) {
        await new Promise((done) => timer = setTimeout(done, pauseMs));
      }
      if (at < bytes.length) {
        controller.enqueue(bytes.slice(at, at += 65536));
      } else if (end === "close") controller.close();
      else if (end === "cut") controller.error(new Error("cut"));
      else await new Promise(() => {});
    },
    cancel: () => clearTimeout(timer),
  });
}

function randomBytes(size: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, at + 65536));
  }
  return bytes;
}

async function* once(
  bytes: Uint8Array<ArrayBuffer>,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  yield bytes;
}
