/**
 * Pulls an artifact with `oras`, hashes the image in the same pass, and reports
 * downloads as events.
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import type { DigestEngineName } from "../system/digest.ts";
import { isSameFileIdentity, readFileIdentity } from "../system/files.ts";
import { openIncrementalFileSync } from "../system/incremental_sync.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { hashFile } from "../transfer/file_digest.ts";
import {
  type Artifact,
  type ImageLayer,
  layerTitle,
  titledDescriptors,
} from "./artifact.ts";
import type { OrasClient } from "./oras_client.ts";

export interface PullImageOptions {
  /** From `selectImageLayer()`. */
  layer: ImageLayer;
  /** Must be empty. */
  dir: string;
  progress: ReturnType<typeof reportDownloadStart>;
  /** @default {"std"} */
  engine?: DigestEngineName;
  /** Sync the image to disk during the pull, because it will be kept. @default {false} */
  syncToDisk?: boolean;
}

export interface DownloadStart {
  image: string;
  source: string;
  /** Total size, in bytes, if known. */
  total: number | null;
  /** Bytes of a partial download that are kept. @default {0} */
  resumed?: number;
  /** Highest number of connections. @default {1} */
  connections?: number;
}

/**
 * Pulls every titled layer of an artifact by its digest into a directory, and hashes
 * the image while `oras` writes it. The SHA-256 in the result is the actual one, which
 * the caller must compare. A file that is not the one that was hashed, or does not have
 * the layer's size, is a `checksum_mismatch`.
 */
export async function pullImage(
  registry: OrasClient,
  artifact: Artifact,
  { layer, dir, progress, engine, syncToDisk = false }: PullImageOptions,
) {
  const mismatch = (why: string, cause?: unknown) =>
    new ToolsmithError(
      "checksum_mismatch",
      `Cannot use ${sanitizeLine(layer.title)} after the pull: ${why}`,
      { hint: "try again; if the error repeats, check the registry", cause },
    );
  const maxBytes = totalPullBytes(artifact);
  const path = join(dir, ...layer.title.split("/"));
  await using fileSync = syncToDisk ? openIncrementalFileSync(path) : undefined;
  const pull = { dir, maxBytes, onBytes: progress.reportBytes };
  const done = registry.pull(artifact.reference, pull)
    .then(() => progress.reportEnd(maxBytes));
  const onBytesRead = fileSync?.reportWritten;
  const hashing = { onBytesRead, engine, written: done };
  const { sha256, hashed } = await hashFile(path, hashing)
    .catch((error) => {
      const isMissing = error instanceof Deno.errors.NotFound;
      throw isMissing ? mismatch("the file is missing", error) : error;
    });
  await fileSync?.settled();
  // The hashed bytes must be those of the file that the pull left.
  const found = await readFileIdentity(path);
  if (!found) throw mismatch("not a regular file");
  const { size, inode } = found;
  if (size !== layer.size) {
    throw mismatch(`the file has ${size} bytes, expected ${layer.size}`);
  }
  if (!isSameFileIdentity(found, hashed)) {
    throw mismatch("the file was replaced while it was hashed");
  }
  // The file system may treat two titles as one name.
  for (const title of titledDescriptors(artifact).map(layerTitle)) {
    if (title === layer.title || inode === null) continue;
    const other = await readFileIdentity(join(dir, ...title!.split("/")));
    if (other?.inode !== inode) continue;
    throw mismatch(`the file is the same as ${sanitizeLine(title!)}`);
  }
  return { path, bytes: size, sha256, hashedFile: found };
}

export function totalPullBytes(artifact: Artifact): number {
  return titledDescriptors(artifact).reduce((sum, { size }) => sum + size, 0);
}

/** Emits `download_start`; returns what emits the progress and the end. */
export function reportDownloadStart(emit: Emit, transfer: DownloadStart) {
  const { image, source, total, resumed = 0, connections = 1 } = transfer;
  const startedAt = performance.now();
  let reportedAt = startedAt;
  const start = { image, source, bytes: total, resumed, connections };
  emit({ type: "download_start", ...start });
  return {
    /** Emits the number of received bytes, at most ten times a second. */
    reportBytes(bytes: number): void {
      const now = performance.now();
      if (now - reportedAt < 100) return;
      reportedAt = now;
      emit({ type: "download_progress", image, bytes, total });
    },
    reportEnd(bytes: number): void {
      const elapsedMs = Math.round(performance.now() - startedAt);
      emit({ type: "download_end", image, source, bytes, elapsedMs });
    },
  };
}
