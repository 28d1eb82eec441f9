/**
 * Pulls an artifact, and computes the SHA-256 of its image in the same pass.
 *
 * @module
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import {
  type DigestEngine,
  fileChunks,
  type Sha256,
  sha256,
} from "../system/digest.ts";
import {
  type Fingerprint,
  fingerprint,
  fingerprintOf,
  isSame,
} from "../system/files.ts";
import { fileStepSync } from "../system/step_sync.ts";
import { oneLine } from "../system/text.ts";
import {
  type Artifact,
  type ImageLayer,
  pulledFiles,
  titleOf,
} from "./artifact.ts";
import type { Oras } from "./oras.ts";

/** What {@linkcode pullImage} takes. */
export interface PullImageOptions {
  /** The image's layer, from `selectImageLayer()`. */
  layer: ImageLayer;
  /** The directory to fill; nothing may lie in it. */
  dir: string;
  /** Notified of the transfer's progress. */
  progress: TransferProgress;
  /** Who computes the digest. @default {"std"} */
  engine?: DigestEngine;
  /** Whether to sync the image while it comes, as it is to stay. @default {false} */
  sync?: boolean;
}

/** An image that was pulled. */
export interface PulledImage {
  /** Its path. */
  path: string;
  /** Its size, in bytes. */
  bytes: number;
  /** SHA-256 of its bytes. */
  sha256: Sha256;
  /** The file whose bytes were hashed. */
  hashed: Fingerprint;
}

/** What is known of a transfer when it begins. */
export interface TransferStart {
  /** The image's name. */
  image: string;
  /** Where it comes from. */
  source: string;
  /** Size of the whole, in bytes, if that is known. */
  total: number | null;
  /** Bytes that were there before. @default {0} */
  resumed?: number;
  /** How many connections there are at most. @default {1} */
  connections?: number;
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
 * `checksum_mismatch` when the file is not the one that was hashed, or has another
 * size than its layer.
 */
export async function pullImage(
  registry: Oras,
  artifact: Artifact,
  { layer, dir, progress, engine, sync = false }: PullImageOptions,
): Promise<PulledImage> {
  const total = totalBytes(artifact);
  const done = registry.pull(artifact.reference, {
    dir,
    maxBytes: total,
    onBytes: progress.at,
  });
  const path = join(dir, ...layer.title.split("/"));
  await using steps = sync ? fileStepSync(path) : undefined;
  let hashed: Fingerprint | undefined;
  const chunks = fileChunks(path, {
    growingUntil: done,
    onBytes: steps?.at,
    onEnd: (stat) => hashed = fingerprintOf(stat),
  });
  const digest = sha256(chunks, engine);
  const settled = digest.catch(() => {});
  try {
    await done;
  } catch (error) {
    await settled;
    throw error;
  }
  progress.end(total);
  const actual = await digest.catch((error) => {
    throw error instanceof Deno.errors.NotFound
      ? notPulled(layer, "it is not there", error)
      : error;
  });
  await steps?.settled();
  const found = await findHashed(path, { hashed, layer, artifact, dir });
  return { path, bytes: layer.size, sha256: actual, hashed: found };
}

/** The bytes that passed by are not yet the file that lies there. */
async function findHashed(
  path: string,
  { hashed, layer, artifact, dir }: {
    hashed: Fingerprint | undefined;
    layer: ImageLayer;
    artifact: Artifact;
    dir: string;
  },
): Promise<Fingerprint> {
  const found = await fingerprint(path);
  if (!found) throw notPulled(layer, "it is no plain file");
  if (found.size !== layer.size) {
    throw notPulled(layer, `it has ${found.size} bytes, not ${layer.size}`);
  }
  if (!isSame(found, hashed)) {
    throw notPulled(layer, "it was replaced while it was hashed");
  }
  // A file system may take for one what we take for two names.
  for (const title of pulledFiles(artifact).map(titleOf)) {
    if (title === layer.title || found.inode === null) continue;
    const other = await fingerprint(join(dir, ...title!.split("/")));
    if (other?.inode === found.inode) {
      throw notPulled(layer, `it is the same file as ${oneLine(title!)}`);
    }
  }
  return found;
}

function notPulled(
  { title }: ImageLayer,
  why: string,
  cause?: unknown,
): ToolsmithError {
  return new ToolsmithError(
    "checksum_mismatch",
    `Cannot take ${oneLine(title)} after the pull: ${why}`,
    { hint: "try again; if it repeats, the registry is broken", cause },
  );
}

/**
 * How much a pull writes at most.
 *
 * @param artifact The artifact.
 * @returns The sum of its files' sizes, in bytes.
 */
export function totalBytes(artifact: Artifact): number {
  return pulledFiles(artifact).reduce((sum, { size }) => sum + size, 0);
}

/**
 * Reports the start of a transfer.
 *
 * @param emit Where events go.
 * @param transfer What is known of it.
 * @returns How to report the rest.
 */
export function startTransfer(
  emit: Emit,
  transfer: TransferStart,
): TransferProgress {
  const { image, source, total, resumed = 0, connections = 1 } = transfer;
  const begun = performance.now();
  let reported = begun;
  const start = { image, source, bytes: total, resumed, connections };
  emit({ type: "download_start", ...start });
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
