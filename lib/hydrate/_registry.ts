/**
 * Brings an image from a registry: by ranges, which go on where an earlier
 * transfer was cut, or by `oras pull`.
 *
 * @module
 */
import { basename, join } from "../path.ts";
import { processEnvironment } from "../environment.ts";
import { formatSource } from "../manifest/source.ts";
import {
  type Artifact,
  type ImageLayer,
  selectImageLayer,
} from "../oci/artifact.ts";
import {
  mayAsk,
  type NoRanges,
  type Places,
  probeBlob,
  pullBlob,
} from "../oci/blob.ts";
import { unusedTokenWarning } from "../oci/credentials.ts";
import { fetchMirroredManifest } from "../oci/mirror_manifest.ts";
import { findMirrors } from "../oci/mirrors.ts";
import { type Oras, oras } from "../oci/oras.ts";
import { pullImage, totalBytes } from "../oci/pull.ts";
import { archOf, fetchForArch } from "../oci/platform.ts";
import type { OciReference } from "../oci/reference.ts";
import { asDigest, type Digest, transferEngine } from "../system/digest.ts";
import { removeTree } from "../system/files.ts";
import { requireSpace } from "../system/free_space.ts";
import { openPart, type PartFile } from "../system/part_file.ts";
import { isTransient, retry } from "../system/retry.ts";
import { begin, type FetchContext, type FetchedImage } from "./_context.ts";

/** Smaller images are there before a second connection would be. */
const PARALLEL_BYTES = 64 * 1024 * 1024;

/** One image of a registry on its way. */
interface Pull {
  context: FetchContext;
  program: Oras;
  artifact: Artifact;
  layer: ImageLayer;
  places: Places;
  /** What is kept from one attempt, or run, to the next. */
  part: PartFile | undefined;
  /** Whether it is known what the registry answers for the image. */
  checked: boolean;
}

/**
 * Brings an image from a registry into the context's directory.
 *
 * @param context The image, the directory, and how to reach the source.
 * @param reference The artifact.
 * @returns The file, and the digest that it has.
 */
export async function pullFromRegistry(
  context: FetchContext,
  reference: OciReference,
): Promise<FetchedImage> {
  const { image, dir, emit, retries, registry } = context;
  const env = registry.env ?? processEnvironment;
  const warn = (message: string) => emit({ type: "warning", message });
  const warning = unusedTokenWarning(reference.registry, env);
  if (warning) warn(warning);
  const program = oras(registry);
  const mirrors = await findMirrors(reference.registry, {
    env,
    onWarning: warn,
  });
  const places = { reference, registry, mirrors };
  const fetch = async (reference: OciReference) =>
    await fetchMirroredManifest({ ...places, reference }, {
      check(artifact) {
        // What an index names is checked when that has come.
        if (!artifact.manifests?.length) {
          selectImageLayer(artifact, image.sha256);
        }
      },
      onMirrorFailed: mirrorFailed(context),
    }) ?? await retry(() => program.fetchManifest(reference), retries);
  const artifact = await fetchForArch(reference, context.arch, fetch);
  const layer = selectImageLayer(artifact, image.sha256);
  emit({
    type: "manifest_resolved",
    image: image.name,
    source: formatSource(reference),
    digest: artifact.digest,
    file: layer.title,
    bytes: layer.size,
  });
  const pull = { context, program, artifact, layer, places, checked: false };
  const identity = { size: layer.size, digest: asDigest(layer.sha256) };
  const engine = transferEngine(layer.size, env);
  await using part = await mayAsk(places)
    ? await openPart(dir, identity, { engine })
    : undefined;
  const fetched = await pullLayer({ ...pull, part });
  const check = async (digest: Digest) => {
    if (part) await probeBlob(places, digest);
  };
  const architecture = artifact.architecture ??
    await program.fetchArchitecture(artifact, check);
  registry.signal?.throwIfAborted();
  return { ...fetched, arch: archOf({ architecture }) };
}

async function pullLayer(pull: Pull): Promise<FetchedImage> {
  const { context, artifact, layer, places: { mirrors }, part } = pull;
  const { retries, connections, dir } = context;
  const parallel = connections > 1 && layer.size >= PARALLEL_BYTES;
  const missing = totalBytes(artifact) - (part?.bytes ?? 0);
  await requireSpace(dir, missing);
  let first = parallel || mirrors.length > 0 || !hasSha256(layer) ||
    artifact.direct === true;
  let usable = part !== undefined;
  if (first && !part) noRanges(pull, "--allow-net is not granted");
  const outcome = await retry(async (attempt) => {
    if (usable && (first || part!.bytes > 0)) {
      // Ranges have retries of their own.
      const outcome = await pullByRanges(pull).catch((error) => ({ error }));
      if (!("unavailable" in outcome)) return outcome;
      const { unreachable } = outcome;
      if (unreachable && (artifact.direct || !hasSha256(layer))) {
        return { error: unreachable };
      }
      noRanges(pull, outcome.unavailable);
      // What has arrived before stays until the registry is reached again.
      first = usable = unreachable !== undefined;
      if (!usable) await part!.clear();
    }
    return await pullByOras(pull, { attempt, keep: usable });
  }, retries);
  if ("error" in outcome) throw outcome.error;
  return outcome;
}

async function pullByRanges(pull: Pull): Promise<FetchedImage | NoRanges> {
  const { context, layer, places } = pull;
  const connections = layer.size < PARALLEL_BYTES ? 1 : context.connections;
  const part = pull.part!;
  const { size: total, bytes: resumed } = part;
  const progress = begin(context, { total, resumed, connections });
  const result = await pullBlob(places, layer, {
    part,
    connections,
    retries: context.retries,
    onBytes: () => progress.at(part.bytes),
    onMirrorFailed: mirrorFailed(context),
  });
  if ("unavailable" in result) {
    pull.checked = true;
    return result;
  }
  const { sha256: actual } = result;
  if (actual !== layer.sha256 && hasSha256(layer)) {
    return { unavailable: `the bytes have the digest ${asDigest(actual)}` };
  }
  progress.end(total - resumed);
  const hashed = await part.finish();
  const name = basename(layer.title);
  return { path: part.path, name, bytes: total, actual, hashed };
}

async function pullByOras(
  pull: Pull,
  { attempt, keep }: { attempt: number; keep: boolean },
): Promise<FetchedImage> {
  const { context, program, artifact, layer, places, part } = pull;
  if (part && !pull.checked) {
    await probeBlob(places, layer.digest, attempt > 1);
    pull.checked = true;
  }
  const empty = keep && part?.bytes === 0;
  if (!empty) await requireSpace(context.dir, totalBytes(artifact));
  // Never onto what an attempt before left behind.
  const target = join(context.dir, `pull-${attempt}`);
  await removeTree(target);
  await Deno.mkdir(target);
  const path = join(target, ...layer.title.split("/"));
  if (empty) await part.expect(path);
  const progress = begin(context, { total: totalBytes(artifact) });
  try {
    const engine = transferEngine(layer.size, context.registry.env);
    const options = { layer, dir: target, progress, engine, sync: true };
    const { bytes, sha256, hashed } = await pullImage(
      program,
      artifact,
      options,
    );
    await part?.finish();
    return { path, name: basename(path), bytes, actual: sha256, hashed };
  } catch (error) {
    pull.checked = false;
    // What is there is for the next run to take over: a copy takes its time.
    if (empty && context.registry.signal?.aborted) throw error;
    if (empty && isTransient(error)) await part.adopt(path);
    else if (empty || !keep) await part?.clear();
    await removeTree(target);
    throw error;
  }
}

/**
 * Whether the registry has the layer under its SHA-256. If not, only hashing
 * tells whether it is the right one; and oras refuses the answer of registries
 * that name each blob by its SHA-256, whatever digest was asked for.
 */
function hasSha256({ digest, sha256 }: ImageLayer): boolean {
  return digest === asDigest(sha256);
}

function mirrorFailed({ emit, image }: FetchContext) {
  return (mirror: string, reason: string) =>
    emit({ type: "mirror_failed", image: image.name, mirror, reason });
}

/** Reports why the image does not come by ranges. */
function noRanges({ context }: Pull, reason: string): void {
  const { emit, image } = context;
  emit({ type: "ranges_unavailable", image: image.name, reason });
}
