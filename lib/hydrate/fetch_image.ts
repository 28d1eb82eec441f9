/**
 * Fetches an image from a registry, an HTTPS server or a local path, and computes
 * its SHA-256 in the same pass.
 */
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import type { OciReference } from "../oci/reference.ts";
import {
  CONNECTIONS_RANGE_TEXT,
  parseConnectionCount,
} from "../oci/registry_options.ts";
import { retryReporter } from "../system/retry.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import type {
  BaseImage,
  FetchedImage,
  FetchJob,
  FetchOptions,
  ImageToFetch,
} from "./_fetch_job.ts";
import { copyLocalImage } from "./_copy_local_image.ts";
import { downloadHttpsImage } from "./_https_download.ts";
import { pullFromRegistry, resolveArtifact } from "./_registry_pull.ts";

export type { BaseImage, FetchedImage, FetchOptions };

const DEFAULT_CONNECTION_COUNT = 4;

/**
 * Fetches an image into a directory that is empty or holds a partial download. The
 * digest in the result is the computed one, which the caller compares.
 */
export function fetchImage(
  image: ImageToFetch,
  dir: string,
  options: FetchOptions & { emit: Emit; base?: BaseImage },
): Promise<FetchedImage> {
  const { source } = image;
  const job = fetchJob(image, dir, options);
  switch (source.kind) {
    case "oci":
      return pullFromRegistry(job, source);
    case "https":
      return downloadHttpsImage(job, source.url);
    case "file":
      return copyLocalImage(job, source.path);
  }
}

/**
 * Finds the digest of an image in a registry, and verifies who signed it, without
 * fetching it.
 */
export async function resolveImage(
  image: ImageToFetch,
  reference: OciReference,
  options: FetchOptions & { emit: Emit },
) {
  const job = fetchJob(image, "", options);
  const { layer, signature } = await resolveArtifact(job, reference);
  return { sha256: layer.sha256, signature };
}

function fetchJob(
  image: ImageToFetch,
  dir: string,
  options: FetchOptions & { emit: Emit; base?: BaseImage },
): FetchJob {
  const { arch = Deno.build.arch } = options;
  const connections = resolveConnectionCount(options);
  const onRetry = retryReporter(options.emit, image.name);
  return { ...options, image, dir, arch, connections, onRetry };
}

function resolveConnectionCount({ connections, env }: FetchOptions): number {
  const text = connections === undefined
    ? (env ?? processEnvironment).get("TOOLSMITH_CONNECTIONS")
    : `${connections}`;
  if (!text) return DEFAULT_CONNECTION_COUNT;
  const count = parseConnectionCount(text);
  if (count !== undefined) return count;
  const shown = sanitizeLine(text, 40);
  const message = connections === undefined
    ? `Cannot use TOOLSMITH_CONNECTIONS=${shown}`
    : `Cannot use ${shown} connections`;
  const hint = `use ${CONNECTIONS_RANGE_TEXT}`;
  throw new ToolsmithError("usage", message, { hint });
}
