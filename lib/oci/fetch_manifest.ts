/**
 * Fetches an artifact's manifest over HTTP, without `oras`, which does not support
 * mirrors.
 */
import {
  type Digest,
  sha256OfBytes,
  sha256ToDigest,
} from "../system/digest.ts";
import { readLimitedBody } from "../system/http_body.ts";
import { httpStatusError } from "../system/http_errors.ts";
import { startStallTimer } from "../system/stall_timer.ts";
import { RangesUnavailableError } from "../transfer/byte_source.ts";
import {
  MAX_MANIFEST_BYTES,
  parseArtifactManifest,
} from "./_artifact_manifest.ts";
import {
  type Artifact,
  IMAGE_MANIFEST_MEDIA_TYPES,
  INDEX_MEDIA_TYPES,
} from "./artifact.ts";
import {
  type Endpoint,
  type RepositoryClient,
  repositoryClient,
} from "./endpoints.ts";
import { formatReference, type OciReference } from "./reference.ts";

const MANIFEST_ACCEPT_HEADER = [
  ...IMAGE_MANIFEST_MEDIA_TYPES,
  ...INDEX_MEDIA_TYPES,
].join(", ");

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
 * Fetches a manifest from one endpoint. Throws the errors of {@linkcode fetchBytes}.
 */
export async function fetchManifestFromEndpoint(
  endpoint: Endpoint,
  reference: OciReference,
): Promise<Artifact> {
  const path = manifestApiPath(reference);
  const shown = formatReference(reference);
  using client = await repositoryClient(endpoint);
  const limit = MAX_MANIFEST_BYTES;
  const bytes = await fetchBytes(endpoint, client, path, limit, shown);
  return parseArtifactManifest(bytes, reference, await digestOf(bytes));
}

/**
 * Fetches a small file of a repository.
 *
 * @param path Path below the repository. If it ends in a digest, the bytes have it.
 * @param limit Maximum size, in bytes.
 * @throws {RangesUnavailableError} When the endpoint does not serve the file; the cause
 * is the error for its status.
 */
export async function fetchBytes(
  endpoint: Endpoint,
  client: RepositoryClient,
  path: string,
  limit: number,
  shown = `${endpoint.host}/${endpoint.repository}/${path}`,
): Promise<Uint8Array<ArrayBuffer>> {
  const { host, options } = endpoint;
  using timer = startStallTimer(`download ${host}`, options);
  const headers = {
    accept: MANIFEST_ACCEPT_HEADER,
    "accept-encoding": "identity",
  };
  const request = { headers, signal: timer.signal };
  const [response] = await client.get(path, request);
  const { status, body } = response;
  if (status !== 200) {
    await body?.cancel();
    const cause = httpStatusError(response, shown);
    throw new RangesUnavailableError(`the server answered ${status}`, {
      cause,
    });
  }
  const bytes = await readLimitedBody(body, timer, { shown: host, limit });
  if (!bytes) {
    throw new RangesUnavailableError(
      `the file exceeds ${limit / 1024 / 1024} MiB`,
    );
  }
  const [, expected] = /\/(sha256:[^?]*)$/.exec(path) ?? [];
  const digest = await digestOf(bytes);
  if (expected !== undefined && expected !== digest) {
    throw new RangesUnavailableError(
      `the server sent a file with the digest ${digest}, expected ${expected}`,
    );
  }
  return bytes;
}

async function digestOf(bytes: Uint8Array<ArrayBuffer>): Promise<Digest> {
  return sha256ToDigest(await sha256OfBytes(bytes));
}

/**
 * Returns a manifest's API path below its repository; the digest has precedence over
 * the tag.
 */
export function manifestApiPath({ digest, tag }: OciReference): string {
  return `manifests/${digest ?? tag}`;
}
