/**
 * Downloads a blob with range requests from a registry or its mirrors; the caller
 * falls back to `oras pull` if that is not possible. Accepts only a response that
 * matches the request.
 *
 * Formats: RFC 9110, section 14 (ranges); OCI Distribution Specification 1.1,
 * "Pulling blobs".
 */
import { ToolsmithError } from "../errors.ts";
import type { Sha256 } from "../system/digest.ts";
import {
  httpStatusError,
  unexpectedContentEncoding,
} from "../system/http_errors.ts";
import type { PartFile } from "../system/part_file.ts";
import { isRedirectStatus } from "../system/redirects.ts";
import { isTransientError, RetryAfterError } from "../system/retry.ts";
import {
  startStallTimer,
  withOptionalRequestTimeout,
} from "../system/stall_timer.ts";
import {
  type ByteSource,
  type RangeResponse,
  RangesUnavailableError,
} from "../transfer/byte_source.ts";
import { hashPartFileWhileFilling } from "../transfer/file_digest.ts";
import { Transfer, type TransferOptions } from "../transfer/ranged_transfer.ts";
import { hasNetPermission } from "./_permission_queries.ts";
import type { ImageLayer } from "./artifact.ts";
import {
  type Endpoint,
  type Endpoints,
  type RepositoryClient,
  repositoryClient,
} from "./endpoints.ts";

/** Statuses of a signed URL that has expired. */
const EXPIRED_URL_STATUSES = new Set([400, 401, 403, 404, 410]);

export interface DownloadBlobOptions extends TransferOptions {
  /** Only its missing bytes are requested. */
  partFile: PartFile;
  onBytesWritten: () => void;
  /** Called when a mirror is skipped, with its host and the reason. */
  onMirrorFailed: (mirror: string, reason: string) => void;
}

/**
 * Downloads a blob into a part file with range requests, and hashes the file from the
 * disk in the same pass. When a mirror fails, the download continues from the next
 * mirror or the registry, and keeps the received bytes. The SHA-256 is the actual one,
 * which the caller must compare.
 *
 * @throws {RangesUnavailableError} When range requests are not possible; if there is no
 * connection to the registry, with the failure as the cause.
 */
export async function downloadBlob(
  endpoints: Endpoints,
  layer: ImageLayer,
  options: DownloadBlobOptions,
): Promise<Sha256> {
  const { partFile, signal } = options;
  const fill = () => fillPartFile(endpoints, layer, options);
  return await hashPartFileWhileFilling(partFile, signal, fill);
}

/** Downloads what a part file lacks, as downloadBlob() does, but hashes nothing. */
export async function fillPartFile(
  { mirrors, registry }: Endpoints,
  layer: ImageLayer,
  options: DownloadBlobOptions,
): Promise<void> {
  const read = async (endpoint: Endpoint) => {
    using repository = await repositoryClient(endpoint, options.connections);
    const { host } = new URL(endpoint.baseUrl);
    using transfer = new Transfer(blobSource(repository, host, layer), options);
    await transfer.fill(options.partFile, options.onBytesWritten);
  };
  for (const mirror of mirrors) {
    try {
      return await read(mirror);
    } catch (error) {
      if (!isEndpointError(error)) throw error;
      options.onMirrorFailed(mirror.host, error.message);
    }
  }
  await read(registry);
}

/**
 * Creates a byte source for a blob of a repository; sends no request yet. It throws
 * {@linkcode RangesUnavailableError} for a response that does not match, and, with the
 * failure as the cause, when the first connection fails.
 */
export function blobSource(
  repository: Omit<RepositoryClient, "getBytes" | typeof Symbol.dispose>,
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
    if (redirectTarget) {
      const response = await repository.getAnonymously(redirectTarget, request);
      const { status, body } = response;
      if (!isRedirectStatus(status) && !EXPIRED_URL_STATUSES.has(status)) {
        return [response, redirectTarget];
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
        const requested = { start: from, end: to, size, host: url.host };
        const valid = await validateRangeResponse(response, requested);
        if (!repository.isRegistryUrl(url)) redirectTarget = url;
        return valid;
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

interface RequestedRange {
  start: number;
  end: number;
  size: number;
  host: string;
}

/** Throws for a response that does not match the request. */
async function validateRangeResponse(
  response: Response,
  requested: RequestedRange,
): Promise<RangeResponse> {
  const { status, body } = response;
  const { start, end, size, host } = requested;
  const mismatch = rangeMismatch(response, requested);
  if (mismatch === undefined && body) {
    return status === 206
      ? { start, end, body }
      : { start: 0, end: size, body };
  }
  await body?.cancel();
  const error = httpStatusError(response, host);
  if (isTransientError(error) && status !== 501) throw error;
  const why = mismatch ?? "answered without a body";
  throw new RangesUnavailableError(`${host} ${why}`);
}

/** Describes how a response differs from the requested range or the whole blob. */
function rangeMismatch(
  { status, headers }: Response,
  { start, end, size }: RequestedRange,
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

/**
 * Sends a HEAD request for a blob before `oras pull`, which would follow any redirect
 * and retry a busy registry six times. A malicious registry may answer oras
 * differently, so this only detects misconfiguration.
 *
 * @param registry The registry; oras does not use mirrors.
 * @param again Whether oras has failed before; then any transient error is thrown, else
 * only one with Retry-After.
 * @throws {ToolsmithError} `redirect_refused`, `rate_limited`, `registry_unavailable`;
 * all other errors are ignored.
 */
export async function probeBlob(
  registry: Endpoint,
  digest: string,
  again = false,
): Promise<void> {
  const { host, baseUrl } = registry;
  if (!hasNetPermission(new URL(baseUrl))) return;
  const limits = withOptionalRequestTimeout(registry.options);
  using timer = startStallTimer(`download ${host}`, limits);
  const { signal } = timer;
  let answer: Response;
  try {
    const options = { ...limits, signal };
    using repository = await repositoryClient({ ...registry, options });
    const head = { method: "HEAD", signal };
    [answer] = await repository.get(`blobs/${digest}`, head);
    await answer.body?.cancel();
  } catch (error) {
    limits.signal?.throwIfAborted();
    const refused = (error as { code?: string }).code === "redirect_refused";
    if (refused || error instanceof RetryAfterError) throw error;
    return;
  }
  const error = httpStatusError(answer, host);
  if (error instanceof RetryAfterError || again && isTransientError(error)) {
    throw error;
  }
}

/** Returns true if Deno may connect to any endpoint; otherwise only `oras` can. */
export function hasPermittedEndpoint(
  { mirrors, registry }: Endpoints,
): boolean {
  return [...mirrors, registry]
    .some(({ baseUrl }) => hasNetPermission(new URL(baseUrl)));
}

/** Returns true if another endpoint may succeed, as opposed to a full disk. */
export function isEndpointError(error: unknown): error is Error {
  const { code } = error as { code?: string };
  return error instanceof RangesUnavailableError || isTransientError(error) ||
    code === "dns_failed" || code === "tls_failed" ||
    code === "redirect_refused" || code === "file_unreadable";
}
