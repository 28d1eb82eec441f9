/**
 * Fetches an image from a registry: with range requests, which can resume a
 * partial download, or with `oras pull`.
 */
import { basename, join } from "../path.ts";
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { UpdateSize } from "../events.ts";
import { CHUNK_INDEX } from "../delta/chunk_index.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import { type ImageLayer, selectImageLayer } from "../oci/artifact.ts";
import {
  downloadBlob,
  hasPermittedEndpoint,
  probeBlob,
} from "../oci/blob_download.ts";
import { unusedGhcrTokenWarning } from "../oci/ghcr_credentials.ts";
import { findEndpoints, registryEndpoint } from "../oci/endpoints.ts";
import { fetchManifestFromMirrors } from "../oci/fetch_manifest.ts";
import { orasClient } from "../oci/oras_client.ts";
import { fetchArtifactForArch, parseOciArch } from "../oci/platform.ts";
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
  retryReporter,
  retryTransient,
} from "../system/retry.ts";
import { RangesUnavailableError } from "../transfer/byte_source.ts";
import {
  downloadIntoPart,
  type FetchedImage,
  type FetchJob,
  type FetchRequest,
  type PartDownload,
  reportTransferStart,
} from "./_fetch_job.ts";
import { copyFromBase } from "./_update.ts";

/** A smaller image arrives before a second connection is open. */
const MIN_PARALLEL_BYTES = 64 * 1024 * 1024;

type RegistryPull = Awaited<ReturnType<typeof resolveArtifact>> & {
  job: FetchJob;
  /** Keeps bytes between attempts and runs. */
  part: PartFile;
  /** Downloads with range requests. */
  download: PartDownload;
  /** What was copied from an older image, unless that proved wrong. */
  update?: UpdateSize;
};

/** Finds an image in a registry, and verifies who signed it, if there is a rule. */
export async function resolveArtifact(
  request: Omit<FetchRequest, "dir" | "base">,
  reference: OciReference,
) {
  const { emit, arch = Deno.build.arch, env = processEnvironment } = request;
  const { name: image, sha256, signature: rule } = request.image;
  const options = { ...request, onRetry: retryReporter(emit, image) };
  const warn = (message: string) => emit({ type: "warning", message });
  const warning = unusedGhcrTokenWarning(reference.registry, env);
  if (warning) warn(warning);
  const oras = orasClient(options);
  const endpoints = sha256 || rule
    ? await findEndpoints(reference, options, warn)
    : { mirrors: [], registry: registryEndpoint(reference, options) };
  // A mirror needs no trust, as long as the digest of the image is known.
  const mirrors = sha256 ? endpoints.mirrors : [];
  const onMirrorFailed = (mirror: string, reason: string) =>
    emit({ type: "mirror_failed", image, mirror, reason });
  const fetch = async (wanted: OciReference) =>
    await fetchManifestFromMirrors(mirrors, wanted, sha256, onMirrorFailed) ??
      await retryTransient(() => oras.fetchManifest(wanted), options);
  const artifact = await fetchArtifactForArch(reference, arch, fetch);
  const layer = selectImageLayer(artifact, sha256);
  if (rule && !isAddressedBySha256(layer)) throw unsignedDigestError(layer);
  const signature = rule &&
    await verifySignature(artifact, { rule, ...endpoints }, options);
  if (signature) {
    const { digest } = artifact;
    const { signer } = signature;
    emit({ type: "signature_verified", image, digest, signer });
  }
  return { oras, endpoints, artifact, layer, onMirrorFailed, signature };
}

export async function pullFromRegistry(
  job: FetchJob,
  reference: OciReference,
): Promise<FetchedImage> {
  const { dir, image: { name: image }, emit, env, signal } = job;
  const resolved = await resolveArtifact(job, reference);
  const { oras, endpoints, artifact, layer, onMirrorFailed } = resolved;
  const source = formatImageSource(reference);
  const { title: file, size } = layer;
  const about = { image, source, digest: artifact.digest, file, bytes: size };
  emit({ type: "manifest_resolved", ...about });
  const engine = selectDigestEngine(size, env);
  const expected = { size, digest: sha256ToDigest(layer.sha256) };
  await using part = await openPartFile(dir, expected, { engine });
  const connections = size < MIN_PARALLEL_BYTES ? 1 : job.connections;
  const download: PartDownload = (how) =>
    downloadBlob(endpoints, layer, part, { ...how, onMirrorFailed });
  const pull = { ...resolved, job: { ...job, connections }, part, download };
  const fetched = await pullLayer(pull);
  const probe = (digest: string) => probeBlob(endpoints.registry, digest);
  const architecture = artifact.architecture ??
    await oras.fetchArchitecture(artifact, probe);
  signal?.throwIfAborted();
  const { signature } = resolved;
  return { ...fetched, signature, arch: parseOciArch(architecture) };
}

/**
 * Pulls the image's layer: first with range requests, for a large image or a partial
 * download, then with `oras pull`. Range requests resume what an interrupted `oras
 * pull` wrote.
 */
async function pullLayer(pull: RegistryPull): Promise<FetchedImage> {
  const { job, part, artifact, layer, endpoints, download } = pull;
  const { mirrors, registry } = endpoints;
  const missing = totalPullBytes(artifact) - part.presentBytes;
  await assertFreeSpace(job.dir, missing);
  const onlyRanges = artifact.fetchedWithoutOras === true ||
    !isAddressedBySha256(layer);
  const prefersRanges = job.connections > 1 || mirrors.length > 0 || onlyRanges;
  let canUseRanges = hasPermittedEndpoint(endpoints);
  const reportFallback = (reason: string) =>
    job.emit({ type: "ranges_unavailable", image: job.image.name, reason });
  if (prefersRanges && !canUseRanges) {
    reportFallback("--allow-net is not granted");
  }
  if (canUseRanges) {
    const indexes = findAttachedFiles(endpoints, artifact.digest, CHUNK_INDEX);
    pull.update = await copyFromBase(job, part, indexes, download);
  }
  const budget = createRetryBudget(job);
  for (let attempt = 1;; attempt++) {
    if (canUseRanges && (prefersRanges || part.presentBytes > 0)) {
      try {
        // The transfer has a retry budget of its own.
        return await pullWithRangeRequests(pull);
      } catch (error) {
        if (!(error instanceof RangesUnavailableError)) throw error;
        const { message, cause } = error;
        const isUnreachable = cause instanceof ToolsmithError;
        if (isUnreachable && onlyRanges) throw cause;
        reportFallback(message);
        // Keep the partial download until the registry is reachable again.
        canUseRanges = isUnreachable;
        if (!isUnreachable) await part.clear();
      }
    }
    try {
      // oras would follow any redirect.
      await probeBlob(registry, layer.digest, attempt > 1);
      return await pullWithOras(pull, attempt, canUseRanges);
    } catch (error) {
      budget.recordFailure(error);
      await budget.waitForBackoff();
    }
  }
}

async function pullWithRangeRequests(
  pull: RegistryPull,
): Promise<FetchedImage> {
  const { job, part, update, layer, download } = pull;
  const { emit, image: { name: image } } = job;
  const sha256 = await downloadIntoPart(job, part, download);
  if (sha256 === layer.sha256 || !update && !isAddressedBySha256(layer)) {
    const hashedFile = await part.markComplete();
    const { path, size: bytes } = part;
    const fileName = basename(layer.title);
    return { path, fileName, bytes, sha256, hashedFile, update };
  }
  const digest = sha256ToDigest(sha256);
  const reason = `the downloaded bytes have the digest ${digest}`;
  if (!update) throw new RangesUnavailableError(reason);
  emit({ type: "update_declined", image, reason });
  pull.update = undefined;
  await part.clear();
  return await pullWithRangeRequests(pull);
}

/** `canResume` tells whether range requests can resume an interrupted attempt. */
async function pullWithOras(
  { job, part, oras, artifact, layer }: RegistryPull,
  attempt: number,
  canResume: boolean,
): Promise<FetchedImage> {
  const { dir, env, signal } = job;
  const total = totalPullBytes(artifact);
  await assertFreeSpace(dir, total);
  // A fresh directory: oras must not write onto an earlier attempt's files.
  const target = join(dir, `pull-${attempt}`);
  await removeTree(target);
  await Deno.mkdir(target);
  const path = join(target, ...layer.title.split("/"));
  const isResumable = canResume && part.presentBytes === 0;
  if (isResumable) await part.recordExternalFile(path);
  const progress = reportTransferStart(job, { total });
  try {
    const engine = selectDigestEngine(layer.size, env);
    const pull = { layer, dir: target, progress, engine, syncToDisk: true };
    const pulled = await pullImage(oras, artifact, pull);
    await part.markComplete();
    return { ...pulled, fileName: basename(path) };
  } catch (error) {
    // Leave the copying to the next run: after Ctrl-C it would take too long.
    if (isResumable && signal?.aborted) throw error;
    if (isResumable && isTransientError(error)) {
      await part.copyFromExternalFile(path);
    }
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
