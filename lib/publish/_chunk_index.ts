/** The chunk index of an image to publish, and what it predicts. */
import {
  CHUNK_INDEX,
  CHUNK_INDEX_SUFFIX,
  type ChunkIndex,
  findChunkIndex,
  formatChunkIndex,
  readFileRecords,
} from "../delta/chunk_index.ts";
import { countCopyBytes, createChunkMatcher } from "../delta/update_plan.ts";
import type { Emit } from "../events.ts";
import { statReadableFile } from "../image/inspect_image.ts";
import { selectImageLayer } from "../oci/artifact.ts";
import { findEndpoints } from "../oci/endpoints.ts";
import { orasClient } from "../oci/oras_client.ts";
import { type OciReference, parseReference } from "../oci/reference.ts";
import { findAttachedFiles } from "../oci/referrers.ts";
import type { RegistryOptions } from "../oci/registry_options.ts";
import { basename, join } from "../path.ts";
import { makeLockedTemporaryDir } from "./_temporary_dir.ts";

const MAX_SMALL_UPDATE_SHARE = 0.5;
/** A missing file must not be looked for in a registry. */
const PATH_PATTERN = /^[./]|\.qcow2$/i;

/** Chunks an image. WebCrypto hashes in other threads. */
export async function readRecords(path: string, options: RegistryOptions) {
  using file = await Deno.open(path);
  const records = await Array.fromAsync(readFileRecords(file, options));
  return await new Blob(records as BlobPart[]).bytes();
}

/** Attaches an index to the manifest of a published image. A failure is a warning. */
export async function attachIndex(
  index: ChunkIndex,
  manifest: OciReference,
  { title, annotations }: {
    title: string;
    annotations: Record<string, string>;
  },
  options: RegistryOptions & { emit: Emit },
): Promise<void> {
  const { type, maxBytes } = CHUNK_INDEX;
  const path = `./${title}${CHUNK_INDEX_SUFFIX}`;
  try {
    const bytes = await formatChunkIndex(index);
    if (bytes.length > maxBytes) {
      throw new Error("the image has too many chunks");
    }
    await using dir = await makeLockedTemporaryDir("publish");
    await Deno.writeFile(join(dir.path, path), bytes);
    await orasClient(options).push(manifest, {
      ...{ attach: true, artifactType: type, annotations },
      ...{ files: [{ path, mediaType: type }], cwd: dir.path },
      totalBytes: bytes.length,
    });
  } catch (error) {
    options.signal?.throwIfAborted();
    const { message } = error as Error;
    const warning =
      `cannot attach a chunk index, so every host will download the whole image: ${message}`;
    options.emit({ type: "warning", message: warning });
  }
}

/** Reports what a host with the previous image, a file or reference, will download. */
export async function predictDownload(
  index: ChunkIndex,
  { previous, image }: { previous: string; image: string },
  options: RegistryOptions & { emit: Emit },
): Promise<void> {
  const { emit } = options;
  const { size: total } = index;
  const matcher = createChunkMatcher(index);
  const isPath = await Deno.stat(previous).then(() => true, () => false);
  let from = basename(previous);
  if (isPath || PATH_PATTERN.test(previous)) {
    await statReadableFile(previous, "previous image");
    matcher.add(await readRecords(previous, options));
  } else {
    const reference = parseReference(previous);
    from = reference.tag ?? from;
    const artifact = await orasClient(options).fetchManifest(reference);
    const endpoints = await findEndpoints(reference, options);
    const { digest } = artifact;
    const files = findAttachedFiles(endpoints, digest, CHUNK_INDEX);
    const older = await findChunkIndex(files, selectImageLayer(artifact));
    matcher.add(older.records);
  }
  const bytes = total - countCopyBytes(matcher.plan());
  emit({ type: "update_predicted", image, from, bytes, total });
  if (bytes <= total * MAX_SMALL_UPDATE_SHARE) return;
  const message =
    `for smaller updates, update the guest of ${from} in place, or rsync a new tree onto its file system; run fstrim there; convert with -o cluster_size=4k, and without -W`;
  emit({ type: "warning", message });
}
