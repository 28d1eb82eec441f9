/**
 * Fetches an artifact's manifest over HTTP, without `oras`, which does not support
 * mirrors.
 */
import type { Sha256 } from "../system/digest.ts";
import {
  MAX_MANIFEST_BYTES,
  parseArtifactManifest,
} from "./_artifact_manifest.ts";
import { type Artifact, selectImageLayer } from "./artifact.ts";
import { type Endpoint, repositoryClient } from "./endpoints.ts";
import { formatReference, type OciReference } from "./reference.ts";

/**
 * Requests a manifest from the mirrors, one after the other; `undefined` if none has an
 * index or a manifest with the image `sha256`, as a mirror may be outdated. Mirrors need
 * no trust, because the caller verifies the image's digest.
 */
export async function fetchManifestFromMirrors(
  mirrors: Endpoint[],
  reference: OciReference,
  sha256: Sha256 | undefined,
  onMirrorFailed: (mirror: string, reason: string) => void,
): Promise<Artifact | undefined> {
  for (const mirror of mirrors) {
    if (reference.digest === undefined && !mirror.resolvesTags) continue;
    try {
      const artifact = await fetchManifestFromEndpoint(mirror, reference);
      // An index has no layers: its manifest is checked after it arrives.
      if (!artifact.manifests?.length) selectImageLayer(artifact, sha256);
      return artifact;
    } catch (error) {
      mirror.options.signal?.throwIfAborted();
      onMirrorFailed(mirror.host, (error as Error).message);
    }
  }
  return undefined;
}

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
