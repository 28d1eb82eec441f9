/**
 * Downloads a blob with range requests from a registry or its mirrors; the caller
 * falls back to `oras pull` if that is not possible.
 */
import { httpStatusError } from "../system/http_errors.ts";
import type { PartFile } from "../system/part_file.ts";
import { isTransientError, RetryAfterError } from "../system/retry.ts";
import {
  startStallTimer,
  withOptionalRequestTimeout,
} from "../system/stall_timer.ts";
import { RangesUnavailableError } from "../transfer/byte_source.ts";
import {
  createTransfer,
  type TransferOptions,
} from "../transfer/ranged_transfer.ts";
import { blobSource } from "./_blob_source.ts";
import { hasNetPermission } from "./_permission_queries.ts";
import type { ImageLayer } from "./artifact.ts";
import {
  type Endpoint,
  type Endpoints,
  repositoryClient,
} from "./endpoints.ts";

export interface DownloadBlobOptions extends TransferOptions {
  onBytesWritten: () => void;
  /** Called when a mirror is skipped, with its host and the reason. */
  onMirrorFailed: (mirror: string, reason: string) => void;
}

/**
 * Downloads what a part file lacks of a blob. When a mirror fails, the download
 * continues from the next mirror or the registry, and keeps the received bytes. The
 * caller must compare their digest.
 *
 * @throws {RangesUnavailableError} When range requests are not possible; if there is no
 * connection to the registry, with the failure as the cause.
 */
export async function downloadBlob(
  { mirrors, registry }: Endpoints,
  layer: ImageLayer,
  part: PartFile,
  options: DownloadBlobOptions,
): Promise<void> {
  const read = async (endpoint: Endpoint) => {
    using repository = await repositoryClient(endpoint, options.connections);
    const { host } = new URL(endpoint.baseUrl);
    const source = blobSource(repository, host, layer);
    using transfer = createTransfer(source, options);
    await transfer.fill(part, options.onBytesWritten);
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
