/**
 * Fetches an image from a registry, an HTTPS server or a local path, and computes
 * its SHA-256 in the same pass.
 *
 * @module
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
 * Fetches an image into a directory.
 *
 * Needs the permissions of {@linkcode hydrate}.
 *
 * @param dir A directory that is empty or holds a partial download.
 * @param options Network options, whether the image's digest is `pinned`, and
 * an older image to copy from.
 * @returns The file and its computed digest, which the caller compares.
 * @throws {ToolsmithError} With one of the codes in docs/troubleshooting.md.
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
 * Verifies who signed an image, without fetching it.
 *
 * Throws the errors of {@linkcode verifySignature}.
 *
 * @returns `undefined` for an image that is not in a registry.
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
  { name: image }: ManifestImage,
  options: FetchOptions & { emit: Emit },
): ResolvedFetchOptions {
  const { emit, arch = Deno.build.arch } = options;
  return {
    ...options,
    arch,
    connections: resolveConnectionCount(options),
    onRetry({ error: { code, message }, attempt, attempts, delayMs }) {
      const retry = { attempt, attempts, delayMs };
      emit({ type: "retry", image, code, message, ...retry });
    },
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
  throw new ToolsmithError(
    "usage",
    connections === undefined
      ? `Cannot use TOOLSMITH_CONNECTIONS=${shown}`
      : `Cannot use ${shown} connections`,
    { hint: `use ${CONNECTIONS_RANGE_TEXT}` },
  );
}
