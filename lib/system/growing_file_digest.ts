/**
 * Hashes a file while it is downloaded. The runtime engine gets a worker thread,
 * because receiving and writing keep the main thread busy.
 */
import type { Hash } from "node:crypto";
import {
  type DigestEngineName,
  readFileChunks,
  type Sha256,
  sha256OfChunks,
} from "./digest.ts";
import { abortable } from "./time.ts";

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
