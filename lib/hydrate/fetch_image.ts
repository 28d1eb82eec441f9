/**
 * Fetches an image from a registry, an HTTPS server or a local path, and computes
 * its SHA-256 in the same pass.
 */
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import type { VerifiedSignature } from "../manifest/signature_rule.ts";
import {
  CONNECTIONS_RANGE_TEXT,
  parseConnectionCount,
} from "../oci/registry_options.ts";
import { retryReporter } from "../system/retry.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import type {
  BaseImage,
  FetchedImage,
  FetchOptions,
  FetchRequest,
  ResolvedFetchOptions,
} from "./_fetch_request.ts";
import { copyLocalImage } from "./_copy_local_image.ts";
import { downloadHttpsImage } from "./_https_download.ts";
import { pullFromRegistry, resolveArtifact } from "./_registry_pull.ts";

export type { BaseImage, FetchedImage, FetchOptions };

const DEFAULT_CONNECTION_COUNT = 4;

/**
 * Fetches an image into a directory that is empty or holds a partial download. The
 * digest in the result is the computed one, which the caller compares. `pinned` tells
 * whether the image's digest is known; `base` is an older image to copy from.
 */
export function fetchImage(
  image: ManifestImage,
  dir: string,
  options: FetchOptions & { emit: Emit; pinned?: boolean; base?: BaseImage },
): Promise<FetchedImage> {
  const { source } = image;
  const { pinned = true, base } = options;
  const request: FetchRequest = { image, dir, pinned, base };
  const resolved = resolveFetchOptions(image, options);
  switch (source.kind) {
    case "oci":
      return pullFromRegistry(request, resolved, source);
    case "https":
      return downloadHttpsImage(request, resolved, source.url);
    case "file":
      return copyLocalImage(request, resolved, source.path);
  }
}

/**
 * Verifies who signed an image, without fetching it; `undefined` for an image that is
 * not in a registry.
 */
export async function verifyImageSignature(
  image: ManifestImage,
  options: FetchOptions & { emit: Emit },
): Promise<VerifiedSignature | undefined> {
  if (image.source.kind !== "oci") return undefined;
  const resolved = resolveFetchOptions(image, options);
  return (await resolveArtifact(image, resolved, image.source)).signature;
}

function resolveFetchOptions(
  { name }: ManifestImage,
  options: FetchOptions & { emit: Emit },
): ResolvedFetchOptions {
  const { emit, arch = Deno.build.arch } = options;
  return {
    ...options,
    arch,
    connections: resolveConnectionCount(options),
    onRetry: retryReporter(emit, name),
  };
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
