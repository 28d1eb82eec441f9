/**
 * Requests a file, or the rest of a file, from any HTTPS server.
 *
 * Range requests follow RFC 9110, section 14.
 */
import { quoteShellWord } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { readLimitedBody } from "../system/http_body.ts";
import type { HttpClient } from "../system/http_client.ts";
import {
  httpStatusError,
  unexpectedContentEncoding,
} from "../system/http_errors.ts";
import { fetchFollowingRedirects } from "../system/redirects.ts";
import {
  type StallTimerOptions,
  startStallTimer,
} from "../system/stall_timer.ts";
import type { ByteSource } from "../transfer/byte_source.ts";
import { transferInterruptedError } from "../transfer/ranged_transfer.ts";

const MAX_HTTPS_IMAGE_BYTES = 256 * 1024 ** 3;

/**
 * Returns a byte source for a URL; sends nothing yet. An encoded body is
 * `image_invalid`, a file above `maxBytes` is `artifact_unsafe`.
 */
export function httpsByteSource(
  url: URL,
  client: HttpClient,
  maxBytes = MAX_HTTPS_IMAGE_BYTES,
): ByteSource {
  const shown = `${url.origin}${url.pathname}`;
  /** The version that the first bytes belong to. */
  let etag: string | null | undefined;
  return {
    displayName: shown,
    maxBytes,
    tooManyBytesError: (limit) =>
      limit === maxBytes ? fileTooLargeError(shown, limit) : new ToolsmithError(
        "checksum_mismatch",
        `Cannot download ${shown}: the server sent more than the ${limit} bytes it announced`,
        {
          hint:
            "check the server and any proxy; the downloaded bytes were discarded",
        },
      ),
    async requestRange(from, to, signal) {
      // An encoded body has neither the size nor the byte positions of the file.
      const headers = new Headers({ "accept-encoding": "identity" });
      const last = to === Infinity ? "" : to - 1;
      if (from > 0 || last) headers.set("range", `bytes=${from}-${last}`);
      if (from > 0 && etag) headers.set("if-range", etag);
      const send = (to: URL) => client.fetch(to, { headers, signal }, shown);
      const [response] = await fetchFollowingRedirects(url, send, signal);
      const { status, body } = response;
      if (status === 416 && from > 0) {
        // The file on the server is shorter than before.
        await body?.cancel();
        return await this.requestRange(0, Infinity, signal);
      }
      const error = findResponseError(response, from, shown);
      if (error || !body) {
        await body?.cancel();
        throw error ?? httpStatusError(response, shown);
      }
      const length = response.headers.get("content-length");
      const start = status === 206 ? from : 0;
      const end = length === null ? Infinity : start + Number(length);
      if (length !== null && end > maxBytes) {
        await body.cancel();
        throw fileTooLargeError(shown, maxBytes);
      }
      if (etag === undefined || start === 0) {
        etag = response.headers.get("etag");
      }
      return { start, end, body };
    },
  };
}

/** Downloads a file of at most `limit` bytes into memory. */
export async function downloadSmallFile(
  url: URL,
  client: HttpClient,
  limit: number,
  options: StallTimerOptions,
): Promise<Uint8Array> {
  const source = httpsByteSource(url, client, limit);
  const { displayName: shown } = source;
  using timer = startStallTimer(`download ${shown}`, options);
  const { body } = await source.requestRange(0, Infinity, timer.signal);
  const bytes = await readLimitedBody(body, timer, { shown, limit });
  if (!bytes) throw fileTooLargeError(shown, limit);
  return bytes;
}

function fileTooLargeError(shown: string, maxBytes: number): ToolsmithError {
  const message =
    `Cannot download ${shown}: the file is larger than the limit of ${maxBytes} bytes`;
  const hint =
    "for an image, download the file and set image.qcow2 in the manifest to its path; for a checksum list, pass the digest: --sha256 DIGEST";
  return new ToolsmithError("artifact_unsafe", message, { hint });
}

function findResponseError(response: Response, from: number, shown: string) {
  const { status, headers } = response;
  if (!response.ok) return httpStatusError(response, shown);
  const encoding = unexpectedContentEncoding(headers);
  if (encoding) {
    // Decoding would not help: an interrupted transfer could not be resumed.
    const message =
      `Cannot download ${shown}: the server sent Content-Encoding: ${encoding} despite Accept-Encoding: identity`;
    const hint =
      `turn off compression for this file on the server, or download the file yourself: curl -L --compressed -o FILE ${
        quoteShellWord(shown)
      }`;
    return new ToolsmithError("image_invalid", message, { hint });
  }
  const range = /^bytes (\d+)-/.exec(headers.get("content-range") ?? "");
  if (status !== 206 || Number(range?.[1]) === from) return undefined;
  return transferInterruptedError(
    `Cannot resume the download of ${shown} at byte ${from}: the server sent a different range`,
  );
}
