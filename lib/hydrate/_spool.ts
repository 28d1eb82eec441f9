/**
 * An image that comes in order, and that no later run goes on with.
 *
 * @module
 */
import { basename, join } from "../path.ts";
import { fileChunks, sha256, transferEngine } from "../system/digest.ts";
import { type Fingerprint, fingerprintOf } from "../system/files.ts";
import { requireSpace } from "../system/free_space.ts";
import type { writeSparse } from "../system/sparse.ts";
import { fileStepSync } from "../system/step_sync.ts";
import { begin, type FetchContext, type FetchedImage } from "./_context.ts";

/** How much of a body without a length is written between two looks at the disk. */
const SPACE_STEP = 1024 * 1024;

/**
 * Writes chunks to a new file in the context's directory, and computes their
 * digest in the same pass.
 *
 * @param context The image and the directory.
 * @param chunks The bytes.
 * @param file Its name, its size if that is known, and how it is written.
 * @returns The file, and the digest that it has.
 */
export async function spool(
  context: FetchContext,
  chunks: AsyncIterable<Uint8Array<ArrayBuffer>>,
  { name, total, write }: {
    name: string;
    total: number | null;
    write: typeof writeSparse;
  },
): Promise<FetchedImage> {
  const path = join(context.dir, name);
  const engine = transferEngine(total ?? Infinity, context.registry.env);
  const progress = begin(context, { total });
  let bytes = 0;
  let checked = 0;
  await using steps = fileStepSync(path);
  using file = await Deno.open(path, { write: true, createNew: true });
  const written = async function* () {
    for await (const chunk of chunks) {
      if (total === null && bytes >= checked) {
        // A body without a length may have no end: it must not fill the disk.
        await requireSpace(context.dir, SPACE_STEP);
        checked = bytes + SPACE_STEP;
      }
      await write(file, chunk);
      bytes += chunk.length;
      steps.at(bytes);
      progress.at(bytes);
      yield chunk;
    }
  };
  const actual = await sha256(written(), engine);
  // It may end in a hole.
  await file.truncate(bytes);
  await steps.settled();
  progress.end(bytes);
  const hashed = fingerprintOf(await file.stat());
  return { path, name, bytes, actual, hashed };
}

/**
 * Computes the digest of a copy in the context's directory that shares the blocks
 * of an image.
 *
 * @param context The image and the directory.
 * @param path The copy.
 * @returns The file, and the digest that it has.
 */
export async function hashClone(
  context: FetchContext,
  path: string,
): Promise<FetchedImage> {
  const { env, signal } = context.registry;
  const { size: bytes } = await Deno.stat(path);
  const progress = begin(context, { total: bytes });
  let hashed: Fingerprint;
  const chunks = fileChunks(path, {
    signal,
    onBytes: progress.at,
    onEnd: (stat) => hashed = fingerprintOf(stat),
  });
  const actual = await sha256(chunks, transferEngine(bytes, env));
  progress.end(bytes);
  return { path, name: basename(path), bytes, actual, hashed: hashed! };
}
