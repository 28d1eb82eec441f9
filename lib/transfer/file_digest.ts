/** Computes the SHA-256 of files while they are being written. */
import {
  type DigestEngineName,
  growthUntil,
  readFileChunks,
  type ReadFileChunksOptions,
  type Sha256,
  sha256OfChunks,
} from "../system/digest.ts";
import { type FileIdentity, toFileIdentity } from "../system/files.ts";
import type { PartFile } from "../system/part_file.ts";
import { anySignal } from "../system/time.ts";

/** Runs a download into a part file and hashes the file from the disk meanwhile. */
export async function hashPartFileWhileFilling(
  part: PartFile,
  signal: AbortSignal | undefined,
  fill: () => Promise<void>,
): Promise<Sha256> {
  const stop = new AbortController();
  const digest = part.sha256WhenComplete(anySignal(signal, stop.signal));
  digest.catch(() => {});
  try {
    await fill();
    return await digest;
  } finally {
    stop.abort();
  }
}

/** Hashes a file, which may still be growing. */
export async function hashFile(
  path: string,
  { engine, ...options }: Omit<ReadFileChunksOptions, "onEndOfFile"> & {
    engine?: DigestEngineName;
  },
): Promise<{ sha256: Sha256; hashed: FileIdentity }> {
  let hashed: FileIdentity;
  const onEndOfFile = (stat: Deno.FileInfo) => hashed = toFileIdentity(stat);
  const chunks = readFileChunks(path, { ...options, onEndOfFile });
  const sha256 = await sha256OfChunks(chunks, engine);
  return { sha256, hashed: hashed! };
}

/**
 * Hashes a file while another program writes it, until `done` resolves. Throws what
 * `done` rejects with.
 */
export async function hashGrowingFile(
  path: string,
  done: Promise<void>,
  options: Omit<Parameters<typeof hashFile>[1], "signal">,
): ReturnType<typeof hashFile> {
  // Hashing the rest of a failed download would only delay the error.
  const stop = new AbortController();
  done.catch(() => stop.abort());
  const growth = { signal: stop.signal, byteCounts: growthUntil(done) };
  const digest = hashFile(path, { ...options, ...growth });
  const settled = digest.catch(() => {});
  await done.finally(() => settled);
  return await digest;
}
