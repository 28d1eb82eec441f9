/**
 * One request for a file, or for the rest of one, that is aborted when nothing
 * arrives for too long.
 *
 * Ranges are those of RFC 9110, section 14.
 *
 * @module
 */
import { shellWord } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import type { HttpClient } from "../system/http_client.ts";
import { contentEncoding, statusError } from "../system/http_errors.ts";
import {
  type StallWatch,
  watchedChunks,
  watchStall,
} from "../system/http_stall.ts";
import { fetchFollowing } from "../system/redirects.ts";

/** What {@linkcode requestFile} takes. */
export interface FileRequest {
  /** Position of the first byte that is wanted. */
  from: number;
  /** What the server called the version that the first bytes are of. */
  etag: string | null;
  /** Sends it. */
  client: HttpClient;
  /** Time without a byte after which it is aborted, in milliseconds. */
  stallTimeoutMs: number;
  /** Ends the transfer when aborted. */
  signal: AbortSignal | undefined;
}

/** A file, or the rest of one, on its way. */
export interface Transfer {
  /** The address, as a person may see it. */
  shown: string;
  /** The first byte's position in the file: 0 where the server sends all. */
  from: number;
  /** How many bytes come; `null` where the server does not say. */
  bytes: number | null;
  /** What the server calls this version of the file. */
  etag: string | null;
  /** The bytes. */
  body: AsyncIterable<Uint8Array<ArrayBuffer>>;
  /** Ends the transfer. */
  cancel(): void;
}

/**
 * Asks for a file.
 *
 * @param url The address.
 * @param request Which part of it, and how long to wait.
 * @returns The transfer, once the server has answered with the file.
 * @throws {ToolsmithError} As {@linkcode openHttps} does.
 */
export async function requestFile(
  url: URL,
  { from, etag, client, stallTimeoutMs, signal }: FileRequest,
): Promise<Transfer> {
  const shown = `${url.origin}${url.pathname}`;
  const stop = new AbortController();
  using watch = watchStall(shown, stallTimeoutMs, signal, stop.signal);
  try {
    // Encoded bytes would have neither the size nor the ranges of the file.
    const headers = new Headers({ "accept-encoding": "identity" });
    if (from > 0) headers.set("range", `bytes=${from}-`);
    if (from > 0 && etag) headers.set("if-range", etag);
    const { signal: either } = watch;
    const ask = (at: URL) =>
      client.fetch(at, { headers, signal: either }, shown);
    const [response] = await fetchFollowing(url, ask, either);
    if (response.status === 416 && from > 0) {
      // The file is shorter by now.
      await response.body?.cancel();
      const rest = { client, stallTimeoutMs, signal };
      return await requestFile(url, { from: 0, etag: null, ...rest });
    }
    const source = await acceptedBody(response, from, shown);
    const length = response.headers.get("content-length");
    return {
      shown,
      from: response.status === 206 ? from : 0,
      bytes: length === null ? null : Number(length),
      etag: response.headers.get("etag"),
      body: explained(source, watch),
      cancel() {
        stop.abort(
          new ToolsmithError(
            "transfer_interrupted",
            `The transfer of ${shown} was ended`,
          ),
        );
        // A body that nobody reads does not heed the signal.
        source.cancel().catch(() => {});
      },
    };
  } catch (error) {
    throw watch.explain(error, false);
  }
}

/** Refuses an answer that is not the file from that position on. */
async function acceptedBody(
  response: Response,
  from: number,
  shown: string,
): Promise<ReadableStream<Uint8Array<ArrayBuffer>>> {
  const { body, status, headers } = response;
  if (!response.ok || !body) {
    await body?.cancel();
    throw statusError(response, shown);
  }
  const encoding = contentEncoding(headers);
  if (encoding) {
    await body.cancel();
    throw encoded(shown, encoding);
  }
  const range = /^bytes (\d+)-/.exec(headers.get("content-range") ?? "");
  if (status !== 206 || Number(range?.[1]) === from) return body;
  await body.cancel();
  throw new ToolsmithError(
    "transfer_interrupted",
    `Cannot go on with ${shown} at byte ${from}: the server sent others`,
    { hint: "try again" },
  );
}

/** To decode it would not do: a cut transfer could not be resumed. */
function encoded(shown: string, encoding: string): ToolsmithError {
  return new ToolsmithError(
    "image_invalid",
    `Cannot download ${shown}: the server sends it with Content-Encoding: ${encoding}, though it was asked not to`,
    {
      hint:
        `turn off compression for that file on the server, or download it yourself: curl -L --compressed -o IMAGE.qcow2 ${
          shellWord(shown)
        }`,
    },
  );
}

async function* explained(
  source: ReadableStream<Uint8Array<ArrayBuffer>>,
  watch: StallWatch,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  try {
    yield* watchedChunks(source, watch);
  } catch (error) {
    throw watch.explain(error, true);
  }
}
