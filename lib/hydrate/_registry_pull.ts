/**
 * Fetches an image from a registry: with range requests, which can resume a
 * partial download, or with `oras pull`.
 */
import { basename, join } from "../path.ts";
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { UpdateSize } from "../events.ts";
import { CHUNK_INDEX } from "../delta/chunk_index.ts";
import type { VerifiedSignature } from "../manifest/signature_rule.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import {
  type Artifact,
  type ImageLayer,
  selectImageLayer,
} from "../oci/artifact.ts";
import {
  downloadBlob,
  fillPartFile,
  hasPermittedEndpoint,
  probeBlob,
} from "../oci/blob_download.ts";
import { unusedGhcrTokenWarning } from "../oci/ghcr_credentials.ts";
import { findEndpoints } from "../oci/endpoints.ts";
import { fetchManifestFromMirrors } from "../oci/fetch_manifest.ts";
import { orasClient } from "../oci/oras_client.ts";
import { artifactArch, fetchArtifactForArch } from "../oci/platform.ts";
import { pullImage, totalPullBytes } from "../oci/pull.ts";
import type { OciReference } from "../oci/reference.ts";
import { findAttachedFiles } from "../oci/referrers.ts";
import { verifySignature } from "../signature/verify_signature.ts";
import { selectDigestEngine, sha256ToDigest } from "../system/digest.ts";
import { removeTree } from "../system/files.ts";
import { assertFreeSpace } from "../system/free_space.ts";
import { openPartFile, type PartFile } from "../system/part_file.ts";
import {
  createRetryBudget,
  isTransientError,
  retryTransient,
} from "../system/retry.ts";
import { RangesUnavailableError } from "../transfer/byte_source.ts";
import {
  type FetchedImage,
  type FetchRequest,
  reportTransferStart,
  type ResolvedFetchOptions,
} from "./_fetch_request.ts";
import { copyFromBase } from "./_update.ts";

/** A smaller image arrives before a second connection is open. */
const MIN_PARALLEL_BYTES = 64 * 1024 * 1024;

/** All bytes arrived and are wrong; they may come from a mirror. */
class DigestMismatchError extends RangesUnavailableError {}

/** When to use range requests instead of `oras pull`. */
type RangePolicy = "first" | "to resume" | "never";

type RegistryPull = Awaited<ReturnType<typeof resolveArtifact>> & {
  request: FetchRequest;
  options: ResolvedFetchOptions;
};

/**
 * Fetches the manifest of an image's artifact, selects the image's layer, and verifies
 * who signed the artifact, if there is a rule.
 */
export async function resolveArtifact(
  { name: image, sha256, signature: rule }: ManifestImage,
  options: ResolvedFetchOptions,
  reference: OciReference,
) {
  const { emit, env = processEnvironment } = options;
  const warn = (message: string) => emit({ type: "warning", message });
  const warning = unusedGhcrTokenWarning(reference.registry, env);
  if (warning) warn(warning);
  const oras = orasClient(options);
  const endpoints = await findEndpoints(reference, options, warn);
  const onMirrorFailed = (mirror: string, reason: string) =>
    emit({ type: "mirror_failed", image, mirror, reason });
  const { mirrors } = endpoints;
  const mirrorOptions = {
    onMirrorFailed,
    checkArtifact(artifact: Artifact) {
      // An index has no layers: its manifest is checked after it arrives.
      if (!artifact.manifests?.length) selectImageLayer(artifact, sha256);
    },
  };
  const fetch = async (reference: OciReference) =>
    await fetchManifestFromMirrors(mirrors, reference, mirrorOptions) ??
      await retryTransient(() => oras.fetchManifest(reference), options);
  const artifact = await fetchArtifactForArch(reference, options.arch, fetch);
  const layer = selectImageLayer(artifact, sha256);
  let signature: VerifiedSignature | undefined;
  if (rule) {
    if (!isAddressedBySha256(layer)) throw unsignedDigestError(layer);
    const wanted = { rule, ...endpoints };
    signature = await verifySignature(artifact, wanted, options);
    const { digest } = artifact;
    const { signer } = signature;
    emit({ type: "signature_verified", image, digest, signer });
  }
  return { oras, endpoints, artifact, layer, onMirrorFailed, signature };
}

export async function pullFromRegistry(
  request: FetchRequest,
  options: ResolvedFetchOptions,
  reference: OciReference,
): Promise<FetchedImage> {
  const { dir, image: { name: image } } = request;
  const { emit, env = processEnvironment } = options;
  const resolved = await resolveArtifact(request.image, options, reference);
  const { oras, endpoints, artifact, layer, signature } = resolved;
  const source = formatImageSource(reference);
  const { title: file, size } = layer;
  const { digest } = artifact;
  emit({
    ...{ type: "manifest_resolved", image, source },
    ...{ digest, file, bytes: size },
  });
  const identity = { size, digest: sha256ToDigest(layer.sha256) };
  const engine = selectDigestEngine(size, env);
  await using part = await openPartFile(dir, identity, { engine });
  const fetched = await pullLayer({ request, options, ...resolved }, part);
  const architecture = artifact.architecture ??
    await oras.fetchArchitecture(
      artifact,
      (digest) => probeBlob(endpoints.registry, digest),
    );
  options.signal?.throwIfAborted();
  const arch = artifactArch({ architecture });
  return { ...fetched, ...signature && { signature }, arch };
}

/**
 * Pulls the image's layer: first with range requests, for a large image or a partial
 * download, then with `oras pull`. Range requests resume what an interrupted `oras
 * pull` wrote. `part` keeps bytes between attempts and runs.
 */
async function pullLayer(pull: RegistryPull, part: PartFile) {
  const { request, options, artifact, layer, onMirrorFailed } = pull;
  const { endpoints, endpoints: { mirrors, registry } } = pull;
  const missing = totalPullBytes(artifact) - part.presentBytes;
  await assertFreeSpace(request.dir, missing);
  const onlyRanges = artifact.fetchedWithoutOras === true ||
    !isAddressedBySha256(layer);
  const isParallel = options.connections > 1 &&
    layer.size >= MIN_PARALLEL_BYTES;
  const prefersRanges = isParallel || mirrors.length > 0 || onlyRanges;
  const isPermitted = hasPermittedEndpoint(endpoints);
  if (prefersRanges && !isPermitted) {
    emitRangesUnavailable(pull, "--allow-net is not granted");
  }
  const wanted = prefersRanges ? "first" : "to resume";
  let ranges: RangePolicy = isPermitted ? wanted : "never";
  let update = isPermitted
    ? await copyFromBase(request, options, part, {
      readIndexes: () =>
        findAttachedFiles(endpoints, artifact.digest, CHUNK_INDEX),
      download: (probe) =>
        fillPartFile(endpoints, layer, {
          ...probe,
          ...{ connections: 1, partFile: part, onMirrorFailed },
        }),
    })
    : undefined;
  /** Whether to probe where the registry redirects to before oras follows. */
  let needsProbe = true;
  const budget = createRetryBudget(options);
  for (let attempt = 1;; attempt++) {
    const resumes = ranges === "to resume" && part.presentBytes > 0;
    if (ranges === "first" || resumes) {
      try {
        // The transfer has a retry budget of its own.
        return await pullWithRangeRequests(pull, part, update);
      } catch (error) {
        if (!(error instanceof RangesUnavailableError)) throw error;
        const { message, cause } = error;
        if (update && error instanceof DigestMismatchError) {
          const { name: image } = request.image;
          options.emit({ type: "update_declined", image, reason: message });
          update = undefined;
          await part.clear();
          continue;
        }
        const unreachable = cause instanceof ToolsmithError;
        if (unreachable && onlyRanges) throw cause;
        emitRangesUnavailable(pull, message);
        // Keep the partial download until the registry is reachable again.
        ranges = unreachable ? "first" : "never";
        if (!unreachable) await part.clear();
        needsProbe = error instanceof DigestMismatchError;
      }
    }
    try {
      if (needsProbe) await probeBlob(registry, layer.digest, attempt > 1);
      const canResume = ranges !== "never";
      return await pullWithOras(pull, { attempt, part, canResume });
    } catch (error) {
      needsProbe = true;
      budget.recordFailure(error);
      await budget.waitForBackoff();
    }
  }
}

async function pullWithRangeRequests(
  { request, options, endpoints, layer, onMirrorFailed }: RegistryPull,
  part: PartFile,
  update: UpdateSize | undefined,
): Promise<FetchedImage> {
  const connections = layer.size < MIN_PARALLEL_BYTES ? 1 : options.connections;
  const { path, size: total, presentBytes: resumed } = part;
  const start = { total, resumed, connections };
  const progress = reportTransferStart(request, options, start);
  const onBytes = () => progress.reportBytes(part.presentBytes);
  const callbacks = { onBytesWritten: onBytes, onMirrorFailed };
  const download = { ...options, connections, partFile: part, ...callbacks };
  const sha256 = await downloadBlob(endpoints, layer, download);
  if (sha256 !== layer.sha256 && (update || isAddressedBySha256(layer))) {
    throw new DigestMismatchError(
      `the downloaded bytes have the digest ${sha256ToDigest(sha256)}`,
    );
  }
  progress.reportEnd(total - resumed);
  const hashedFile = await part.markComplete();
  const fetched = { path, fileName: basename(layer.title), bytes: total };
  return { ...fetched, sha256, hashedFile, ...update && { update } };
}

async function pullWithOras(
  { request, options, oras, artifact, layer }: RegistryPull,
  { attempt, part, canResume }: {
    attempt: number;
    part: PartFile;
    /** Whether range requests can resume an interrupted attempt. */
    canResume: boolean;
  },
): Promise<FetchedImage> {
  const { dir } = request;
  const total = totalPullBytes(artifact);
  const empty = canResume && part.presentBytes === 0;
  if (!empty) await assertFreeSpace(dir, total);
  // A fresh directory: oras must not write onto an earlier attempt's files.
  const target = join(dir, `pull-${attempt}`);
  await removeTree(target);
  await Deno.mkdir(target);
  const path = join(target, ...layer.title.split("/"));
  if (empty) await part.recordExternalFile(path);
  const progress = reportTransferStart(request, options, { total });
  try {
    const engine = selectDigestEngine(layer.size, options.env);
    const pull = { layer, dir: target, progress, engine, syncToDisk: true };
    const pulled = await pullImage(oras, artifact, pull);
    await part.markComplete();
    return { ...pulled, path, fileName: basename(path) };
  } catch (error) {
    // Leave the copying to the next run: after Ctrl-C it would take too long.
    if (empty && options.signal?.aborted) throw error;
    if (empty && isTransientError(error)) await part.copyFromExternalFile(path);
    await removeTree(target);
    throw error;
  }
}

/**
 * Whether the layer's digest in the registry is its SHA-256. Otherwise only
 * hashing shows whether the bytes are right; and oras rejects the response of
 * registries that name a blob by its SHA-256, whatever digest was requested.
 */
function isAddressedBySha256({ digest, sha256 }: ImageLayer): boolean {
  return digest === sha256ToDigest(sha256);
}

/** A signature covers the digests in the artifact's manifest, and no other. */
function unsignedDigestError({ title, digest }: ImageLayer): ToolsmithError {
  const message =
    `Cannot use ${title}: a signature would cover ${digest}, not its SHA-256`;
  const hint = "publish the image again: toolsmith publish IMAGE.qcow2 REF";
  return new ToolsmithError("signature_invalid", message, { hint });
}

function emitRangesUnavailable(
  { request, options }: RegistryPull,
  reason: string,
): void {
  const { name: image } = request.image;
  options.emit({ type: "ranges_unavailable", image, reason });
}
