/**
 * Reads ranges of a blob from a registry or a mirror. Accepts only a response that
 * matches the request.
 *
 * Formats: RFC 9110, section 14 (ranges); OCI Distribution Specification 1.1,
 * "Pulling blobs".
 */
import { ToolsmithError } from "../errors.ts";
import type { Extent } from "../system/extents.ts";
import {
  httpStatusError,
  unexpectedContentEncoding,
} from "../system/http_errors.ts";
import { REDIRECT_STATUSES } from "../system/redirects.ts";
import { isTransientError } from "../system/retry.ts";
import {
  type ByteSource,
  RangesUnavailableError,
} from "../transfer/byte_source.ts";
import type { ImageLayer } from "./artifact.ts";
import type { RepositoryClient } from "./endpoints.ts";

/** Statuses of a signed URL that has expired. */
const EXPIRED_URL_STATUSES = new Set([400, 401, 403, 404, 410]);

/**
 * Creates a byte source for a blob of a repository; sends no request yet. It throws
 * {@linkcode RangesUnavailableError} for a response that does not match, and, with the
 * failure as the cause, when the first connection fails.
 */
export function blobSource(
  repository: Pick<
    RepositoryClient,
    "get" | "getAnonymously" | "isRegistryUrl"
  >,
  host: string,
  { digest, size }: Pick<ImageLayer, "digest" | "size">,
): ByteSource {
  /** The last redirect target, requested directly until it expires. */
  let redirectTarget: URL | undefined;
  let hasResponded = false;

  async function request(
    range: string,
    signal: AbortSignal,
  ): Promise<[Response, URL]> {
    // Ranges and sizes refer to the blob, not to a compressed form.
    const headers = { "accept-encoding": "identity", range };
    const request = { headers, signal };
    // Another connection may change it meanwhile.
    const target = redirectTarget;
    if (target) {
      const response = await repository.getAnonymously(target, request);
      const { status, body } = response;
      if (!REDIRECT_STATUSES.has(status) && !EXPIRED_URL_STATUSES.has(status)) {
        return [response, target];
      }
      await body?.cancel();
      redirectTarget = undefined;
    }
    return await repository.get(`blobs/${digest}`, request);
  }

  return {
    displayName: host,
    maxBytes: size,
    tooManyBytesError: () =>
      new RangesUnavailableError(`${host} sent more bytes than requested`),
    async requestRange(from, to, signal) {
      try {
        // With an end, because some registries answer 416 to an open range.
        const range = `bytes=${from}-${to - 1}`;
        const [response, url] = await request(range, signal);
        hasResponded = true;
        const { status, body } = response;
        const mismatch = rangeMismatch(response, [from, to], size);
        if (mismatch === undefined && body) {
          if (!repository.isRegistryUrl(url)) redirectTarget = url;
          const [start, end] = status === 206 ? [from, to] : [0, size];
          return { start, end, body };
        }
        await body?.cancel();
        const error = httpStatusError(response, url.host);
        if (isTransientError(error) && status !== 501) throw error;
        const why = mismatch ?? "answered without a body";
        throw new RangesUnavailableError(`${url.host} ${why}`);
      } catch (error) {
        // Fall back at once instead of retrying: oras may get a connection.
        if (hasResponded || !isConnectionError(error)) throw error;
        throw new RangesUnavailableError(error.message, { cause: error });
      }
    },
  };
}

function isConnectionError(error: unknown): error is ToolsmithError {
  return error instanceof ToolsmithError &&
    /^(?:connection|dns|tls)_failed$/.test(error.code);
}

function rangeMismatch(
  { status, headers }: Response,
  [start, end]: Extent,
  size: number,
): string | undefined {
  if (status !== 200 && status !== 206) return `answered ${status}`;
  if (status === 206) {
    const text = headers.get("content-range") ?? "";
    const range = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(text);
    if (Number(range?.[1]) !== start || Number(range?.[2]) !== end - 1) {
      const shown = JSON.stringify(text.slice(0, 60));
      return `answered bytes ${start}-${end - 1} with Content-Range ${shown}`;
    }
    const total = range![3];
    if (total !== "*" && Number(total) !== size) {
      return `has a blob of ${total} bytes, the manifest says ${size}`;
    }
  }
  const encoding = unexpectedContentEncoding(headers);
  if (encoding) return `sent the blob with Content-Encoding ${encoding}`;
  const length = headers.get("content-length");
  const expected = status === 206 ? end - start : size;
  if (length === null || Number(length) === expected) return undefined;
  return `sent Content-Length ${Number(length)}, expected ${expected}`;
}
