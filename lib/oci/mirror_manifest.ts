/**
 * Reads an artifact's manifest from a mirror, where `oras` knows none.
 *
 * @module
 */
import { asDigest, sha256 } from "../system/digest.ts";
import { statusError } from "../system/http_errors.ts";
import { watchStall } from "../system/http_stall.ts";
import { abortableChunks, readAtMost } from "../system/streams.ts";
import { MAX_MANIFEST, readManifest } from "./_manifest_reader.ts";
import { mirrorPlaces, openPlace, type Place, STALL_MS } from "./_places.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";
import type { Artifact } from "./artifact.ts";
import type { Places } from "./blob.ts";
import { formatReference, type OciReference } from "./reference.ts";

/** What {@linkcode fetchMirroredManifest} takes. */
export interface MirroredManifestOptions {
  /** Throws for an artifact that will not do: a mirror may be out of date. */
  check: (artifact: Artifact) => void;
  /** Called when a mirror is given up, with its host and the reason. */
  onMirrorFailed: (mirror: string, reason: string) => void;
}

const ACCEPT = [
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
].join(", ");

/**
 * Asks the mirrors for a manifest, one after the other. None is trusted: the
 * digest of the image decides, and whoever lies is given up.
 *
 * Needs `--allow-net` for the mirrors.
 *
 * @param places The reference, and the mirrors.
 * @param options What the artifact must be, and who is notified.
 * @returns The artifact; `undefined` where the registry has to be asked.
 * @throws The signal's reason when it is aborted.
 */
export async function fetchMirroredManifest(
  places: Places,
  { check, onMirrorFailed }: MirroredManifestOptions,
): Promise<Artifact | undefined> {
  const { reference, registry: { signal } } = places;
  for (const place of mirrorPlaces(places)) {
    if (reference.digest === undefined && !place.resolves) continue;
    try {
      const artifact = await fetchManifestFrom(place, reference);
      check(artifact);
      return artifact;
    } catch (error) {
      signal?.throwIfAborted();
      onMirrorFailed(place.host, (error as Error).message);
    }
  }
  return undefined;
}

/**
 * Reads a manifest from one place.
 *
 * Needs `--allow-net` for it.
 *
 * @param place The place.
 * @param reference The manifest.
 * @returns The artifact.
 * @throws {RangesUnavailable} When it cannot be had there; a status that says
 * why is its cause.
 * @throws Those of a network.
 */
export async function fetchManifestFrom(
  place: Place,
  reference: OciReference,
): Promise<Artifact> {
  const { signal, stallTimeoutMs } = place.registry;
  using watch = watchStall(place.host, stallTimeoutMs ?? STALL_MS, signal);
  using registry = await openPlace(place, 1);
  const headers = { accept: ACCEPT, "accept-encoding": "identity" };
  const options = { headers, signal: watch.signal };
  const [response] = await registry.get(manifestPath(reference), options);
  const { status, body } = response;
  if (status !== 200 || !body) {
    await body?.cancel();
    const cause = statusError(response, formatReference(reference));
    throw new RangesUnavailable(`it answers ${status}`, { cause });
  }
  const chunks = abortableChunks(body, watch.signal);
  const bytes = await readAtMost(chunks, MAX_MANIFEST);
  if (!bytes) throw new RangesUnavailable("its manifest is too long");
  const digest = asDigest(await sha256(ReadableStream.from([bytes])));
  if (reference.digest !== undefined && reference.digest !== digest) {
    throw new RangesUnavailable(`it sent a manifest with the digest ${digest}`);
  }
  return readManifest(bytes, reference, digest);
}

/**
 * The path of a manifest below its repository.
 *
 * @param reference The manifest; its digest wins over its tag.
 */
export function manifestPath({ digest, tag }: OciReference): string {
  return `manifests/${digest ?? tag}`;
}
