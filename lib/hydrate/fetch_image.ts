/**
 * Fetches an image from a registry, an HTTPS server or a local path, and computes
 * its SHA-256 in the same pass.
 */
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { OciReference } from "../oci/reference.ts";
import {
  CONNECTIONS_RANGE_TEXT,
  parseConnectionCount,
} from "../oci/registry_options.ts";
import { retryReporter } from "../system/retry.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import type {
  FetchedImage,
  FetchJob,
  FetchOptions,
  FetchRequest,
} from "./_fetch_job.ts";
import { copyLocalImage } from "./_copy_local_image.ts";
import { downloadHttpsImage } from "./_https_download.ts";
import { pullFromRegistry, resolveArtifact } from "./_registry_pull.ts";

export type { FetchOptions };

const DEFAULT_CONNECTION_COUNT = 4;

/**
 * Fetches an image into a directory. The digest in the result is the computed one,
 * which the caller compares.
 */
export function fetchImage(request: FetchRequest): Promise<FetchedImage> {
  const job = fetchJob(request);
  const { source } = request.image;
  switch (source.kind) {
    case "oci":
      return pullFromRegistry(job, source);
    case "https":
      return downloadHttpsImage(job, source.url);
    case "file":
      return copyLocalImage(job, source.path);
  }
}

/** Finds an image in a registry, and verifies who signed it, without fetching it. */
export async function resolveImage(
  request: Omit<FetchRequest, "dir" | "base">,
  reference: OciReference,
) {
  const job = fetchJob({ ...request, dir: "", connections: 1 });
  return await resolveArtifact(job, reference);
}

function fetchJob(request: FetchRequest): FetchJob {
  const { arch = Deno.build.arch, emit, image } = request;
  const connections = resolveConnectionCount(request);
  const onRetry = retryReporter(emit, image.name);
  return { ...request, arch, connections, onRetry };
}

function resolveConnectionCount(
  { connections, env = processEnvironment }: FetchOptions,
): number {
  const variable = env.get("TOOLSMITH_CONNECTIONS");
  const text = `${connections ?? (variable || DEFAULT_CONNECTION_COUNT)}`;
  const count = parseConnectionCount(text);
  if (count !== undefined) return count;
  const shown = sanitizeLine(text, 40);
  const message = connections === undefined
    ? `Cannot use TOOLSMITH_CONNECTIONS=${shown}`
    : `Cannot use ${shown} connections`;
  const hint = `use ${CONNECTIONS_RANGE_TEXT}`;
  throw new ToolsmithError("usage", message, { hint });
}
