/**
 * Pulls an artifact, and computes the SHA-256 of its image in the same pass.
 *
 * @module
 */
import { join } from "@std/path";
import { fileChunks, type Sha256, sha256 } from "../system/digest.ts";
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import type { Artifact, ImageLayer } from "./artifact.ts";
import type { Oras } from "./oras.ts";

/** What {@linkcode pullImage} takes. */
export interface PullImageOptions {
  /** The image's layer, from `selectImageLayer()`. */
  layer: ImageLayer;
  /** The directory to fill; nothing may lie in it. */
  dir: string;
  /** Notified of the transfer's progress. */
  progress: TransferProgress;
}

/** An image that was pulled. */
export interface PulledImage {
  /** Its path. */
  path: string;
  /** Its size, in bytes. */
  bytes: number;
  /** SHA-256 of its bytes. */
  sha256: Sha256;
}

/** Reports a transfer as events. */
export interface TransferProgress {
  /** Reports how many bytes have arrived, ten times a second at most. */
  at(bytes: number): void;
  /** Reports that all have arrived. */
  end(bytes: number): void;
}

/**
 * Pulls every titled layer of an artifact into a directory, and hashes the image
 * while `oras` writes it.
 *
 * Needs `--allow-run=oras`, and `--allow-read` and `--allow-write` for the
 * directory.
 *
 * @param registry The registry that served the artifact.
 * @param artifact The artifact; it is pulled by its digest.
 * @param options The image's layer, the directory, and how to report progress.
 * @returns The image, and the digest that it has: the caller compares it.
 * @throws {ToolsmithError} Those of the registry (docs/troubleshooting.md), and
 * `checksum_mismatch` when the file has another size than its layer.
 */
export async function pullImage(
  registry: Oras,
  artifact: Artifact,
  { layer, dir, progress }: PullImageOptions,
): Promise<PulledImage> {
  const done = registry.pull(artifact.reference, { dir, onBytes: progress.at });
  const path = join(dir, ...layer.title.split("/"));
  const digest = sha256(fileChunks(path, { growingUntil: done }));
  const settled = digest.catch(() => {});
  try {
    await done;
  } catch (error) {
    await settled;
    throw error;
  }
  progress.end(totalBytes(artifact));
  const actual = await digest;
  const { isFile, size } = await Deno.lstat(path);
  if (!isFile || size !== layer.size) {
    throw new ToolsmithError(
      "checksum_mismatch",
      `${layer.title} has ${size} bytes after the pull, not ${layer.size}`,
      { hint: "try again" },
    );
  }
  return { path, bytes: size, sha256: actual };
}

/**
 * How much a pull writes.
 *
 * @param artifact The artifact.
 * @returns The sum of its layers' sizes, in bytes.
 */
export function totalBytes({ layers }: Artifact): number {
  return layers.reduce((sum, { size }) => sum + size, 0);
}

/**
 * Reports the start of a transfer.
 *
 * @param emit Where events go.
 * @param transfer The image's name, its source, and its size in bytes, if known.
 * @returns How to report the rest.
 */
export function startTransfer(
  emit: Emit,
  transfer: { image: string; source: string; total: number | null },
): TransferProgress {
  const { image, source, total } = transfer;
  const begun = performance.now();
  let reported = begun;
  emit({ type: "download_start", image, source, bytes: total });
  return {
    at(bytes) {
      const now = performance.now();
      if (now - reported < 100) return;
      reported = now;
      emit({ type: "download_progress", image, bytes, total });
    },
    end(bytes) {
      const elapsedMs = Math.round(performance.now() - begun);
      emit({ type: "download_end", image, source, bytes, elapsedMs });
    },
  };
}
