/**
 * Fetches an artifact's manifest over HTTP, without `oras`, which does not support
 * mirrors.
 */
import {
  MAX_MANIFEST_BYTES,
  parseArtifactManifest,
} from "./_artifact_manifest.ts";
import type { Artifact } from "./artifact.ts";
import { type Endpoint, repositoryClient } from "./endpoints.ts";
import { formatReference, type OciReference } from "./reference.ts";

/**
 * Requests a manifest from the mirrors, one after the other; `undefined` if no mirror
 * has a usable one. Mirrors need no trust, because the caller verifies the image's
 * digest.
 */
export async function fetchManifestFromMirrors(
  mirrors: Endpoint[],
  reference: OciReference,
  { checkArtifact, onMirrorFailed }: {
    /** Throws for an unusable artifact, such as that of an outdated mirror. */
    checkArtifact: (artifact: Artifact) => void;
    /** Called when a mirror is skipped, with its host and the reason. */
    onMirrorFailed: (mirror: string, reason: string) => void;
  },
): Promise<Artifact | undefined> {
  for (const mirror of mirrors) {
    if (reference.digest === undefined && !mirror.resolvesTags) continue;
    try {
      const artifact = await fetchManifestFromEndpoint(mirror, reference);
      checkArtifact(artifact);
      return artifact;
    } catch (error) {
      mirror.options.signal?.throwIfAborted();
      onMirrorFailed(mirror.host, (error as Error).message);
    }
  }
  return undefined;
}

/**
 * Fetches a manifest from one endpoint. Throws the errors of `getBytes()`.
 */
export async function fetchManifestFromEndpoint(
  endpoint: Endpoint,
  reference: OciReference,
): Promise<Artifact> {
  const path = `manifests/${reference.digest ?? reference.tag}`;
  const shown = formatReference(reference);
  using client = await repositoryClient(endpoint);
  const limit = MAX_MANIFEST_BYTES;
  const { bytes, digest } = await client.getBytes(path, limit, shown);
  return parseArtifactManifest(bytes, reference, digest);
}
