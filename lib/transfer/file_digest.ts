/**
 * Computes the SHA-256 of files while they are being written. For a download, the
 * runtime engine gets a worker thread, because receiving and writing keep the main
 * thread busy.
 */
import type { Hash } from "node:crypto";
import {
  type DigestEngineName,
  readFileChunks,
  type ReadFileChunksOptions,
  type Sha256,
  sha256OfChunks,
} from "../system/digest.ts";
import { type FileIdentity, toFileIdentity } from "../system/files.ts";
import type { PartFile } from "../system/part_file.ts";
import { abortable, anySignal, settlesWithin } from "../system/time.ts";

export interface GrowingFileDigestOptions {
  /** Size of the complete file, in bytes. */
  size: number;
  /**
   * Starts a new sequence of growing counts: the length of the contiguous prefix on the
   * disk. The last count is the size.
   */
  watchByteCount: () => AsyncIterable<number>;
  engine?: DigestEngineName;
  signal?: AbortSignal;
}

const CHUNK_BYTES = 1024 * 1024;
const FILE_GROWTH_POLL_MS = 40;

/** Runs a download into a part file and hashes the file from the disk meanwhile. */
export async function hashPartFileWhileFilling(
  part: PartFile,
  callerSignal: AbortSignal | undefined,
  fill: () => Promise<void>,
): Promise<Sha256> {
  const stop = new AbortController();
  const signal = anySignal(callerSignal, stop.signal);
  const { path, size, engine } = part;
  const watchByteCount = () => part.watchPrefixLength(signal);
  const options = { size, watchByteCount, engine, signal };
  const digest = sha256OfGrowingFile(path, options);
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
  await Promise.allSettled([done, digest]);
  await done;
  return await digest;
}

/** Follows a file until `done` settles, for {@linkcode readFileChunks}. */
export async function* growthUntil(
  done: Promise<unknown>,
): AsyncGenerator<number> {
  do yield Infinity; while (!await settlesWithin(done, FILE_GROWTH_POLL_MS));
  // The writer's last bytes.
  yield Infinity;
}

/**
 * Computes the SHA-256 of a file while it is written, reading from the disk in order.
 */
export async function sha256OfGrowingFile(
  path: string,
  options: GrowingFileDigestOptions,
): Promise<Sha256> {
  const { watchByteCount, engine, signal } = options;
  if (engine === "runtime") {
    try {
      return await sha256InWorker(path, options);
    } catch {
      // The main thread succeeds, or fails with a better error.
    }
  }
  const chunks = readFileChunks(path, { byteCounts: watchByteCount(), signal });
  return await sha256OfChunks(chunks, engine);
}

async function sha256InWorker(
  path: string,
  { size, watchByteCount, signal }: GrowingFileDigestOptions,
): Promise<Sha256> {
  // Source text, because a bundled or compiled program has no worker file.
  const code = `import { createHash } from "node:crypto";
    (${hashFileInWorker})(globalThis, createHash("sha256"), ${
    JSON.stringify({ path, size, chunk: CHUNK_BYTES })
  });`;
  const url = `data:text/javascript,${encodeURIComponent(code)}`;
  const worker = new Worker(url, { type: "module" });
  const digest = Promise.withResolvers<Sha256>();
  worker.onmessage = ({ data }: MessageEvent<Sha256 | null>) =>
    data === null ? digest.reject(new Error("failed")) : digest.resolve(data);
  worker.onerror = (event) => {
    event.preventDefault();
    digest.reject(new Error(event.message));
  };
  const postCounts = async () => {
    let posted = 0;
    for await (const count of watchByteCount()) {
      if (count - posted < CHUNK_BYTES && count < size) continue;
      worker.postMessage(posted = count);
    }
  };
  try {
    await Promise.race([postCounts(), digest.promise]);
    return await abortable(digest.promise, signal);
  } finally {
    worker.terminate();
  }
}

/**
 * Runs in the worker: hashes up to each received count and posts the digest, or
 * `null` on an error, which Deno would print otherwise. The worker gets only this
 * function's source text, so the function must not refer to anything outside.
 */
function hashFileInWorker(
  worker: Worker,
  hash: Hash,
  { path, size, chunk }: { path: string; size: number; chunk: number },
) {
  let file: Deno.FsFile | undefined;
  const buffer = new Uint8Array(chunk);
  let position = 0;
  worker.onmessage = ({ data: end }: MessageEvent<number>) => {
    try {
      file ??= Deno.openSync(path);
      while (position < end) {
        const count = file.readSync(buffer.subarray(0, end - position));
        if (count === null) throw new Error("truncated");
        hash.update(buffer.subarray(0, count));
        position += count;
      }
      if (position === size) worker.postMessage(hash.digest("hex"));
    } catch {
      worker.postMessage(null);
    }
  };
}
