/**
 * Serves one blob on loopback and answers range requests as a test says, for faults
 * that a real registry does not have.
 */

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
  /** The correct response, to send or to modify. */
  correctResponse(): Response;
}

/** A running server. */
export interface BlobServer extends AsyncDisposable {
  /** Its address, without a path. */
  origin: string;
  /** The blob. */
  bytes: Uint8Array<ArrayBuffer>;
  /** `sha256:` and the digest in hex. */
  digest: string;
  /** The requested ranges, as `from-to`, in order. */
  requestedRanges: string[];
  /** Bytes sent in bodies so far. */
  sentBytes(): number;
  /** The maximum number of bodies sent in parallel. */
  peakParallelBodies(): number;
}

/** What {@linkcode startBlobServer} takes. */
export interface BlobServerOptions {
  /** The blob. */
  bytes: Uint8Array<ArrayBuffer>;
  /** Answers a request; `undefined` for the correct response. */
  answer?: (
    request: BlobRequest,
  ) => Response | undefined | Promise<Response | undefined>;
  /** Where it listens. @default {"127.0.0.1"} */
  hostname?: string;
  /** The port. @default {0} any that is free */
  port?: number;
}

/** Starts a server; its blob is at any path. */
export async function startBlobServer(
  options: BlobServerOptions,
): Promise<BlobServer> {
  const { bytes, answer, hostname = "127.0.0.1", port = 0 } = options;
  const hash = await crypto.subtle.digest("SHA-256", bytes);
  const digest = `sha256:${new Uint8Array(hash).toHex()}`;
  const requestedRanges: string[] = [];
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
      const to = Number(range?.[2] ?? bytes.length - 1) + 1;
      requestedRanges.push(`${from}-${to}`);
      const correctResponse = () => rangeResponse(bytes, from, to);
      const number = requestedRanges.length;
      const given = { number, request, from, to, correctResponse };
      const response = await answer?.(given) ??
        correctResponse();
      const { status, headers, body } = response;
      return new Response(body && counted(body), { status, headers });
    },
  );
  return {
    origin: `http://${hostname}:${server.addr.port}`,
    bytes,
    digest,
    requestedRanges,
    sentBytes: () => sent,
    peakParallelBodies: () => peak,
    async [Symbol.asyncDispose]() {
      closing.abort();
      await server.finished;
    },
  };
}

/** A correct 206 response. */
export function rangeResponse(
  bytes: Uint8Array<ArrayBuffer>,
  from: number,
  to: number,
): Response {
  return new Response(chunkedBody(bytes.subarray(from, to)), {
    status: 206,
    headers: {
      "content-range": `bytes ${from}-${to - 1}/${bytes.length}`,
      "content-length": String(to - from),
    },
  });
}

/** A body of chunks that ends in an error if it is cut. */
export function chunkedBody(
  bytes: Uint8Array<ArrayBuffer>,
  { end = "close" }: { end?: "close" | "cut" } = {},
): ReadableStream<Uint8Array> {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (at < bytes.length) {
        controller.enqueue(bytes.slice(at, at += 65536));
      } else if (end === "close") controller.close();
      else controller.error(new Error("cut"));
    },
  });
}
