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

type GrowingFile = Pick<
  PartFile,
  "path" | "size" | "engine" | "watchPrefixLength"
>;

/** How many more bytes must be present before the worker gets a new count. */
const MIN_POSTED_BYTES = 1024 * 1024;
const FILE_GROWTH_POLL_MS = 40;

/** Runs a download into a part file and hashes the file from the disk meanwhile. */
export async function hashPartFileWhileFilling(
  part: PartFile,
  signal: AbortSignal | undefined,
  fill: () => Promise<void>,
): Promise<Sha256> {
  const stop = new AbortController();
  const digest = sha256OfGrowingFile(part, anySignal(signal, stop.signal));
  digest.catch(() => {});
  try {
    await fill();
    return await digest;
  } finally {
    stop.abort();
  }
}

export interface HashFileOptions
  extends Pick<ReadFileChunksOptions, "onBytesRead" | "signal"> {
  engine?: DigestEngineName;
  /** Resolves when another program has written the file. */
  written?: Promise<void>;
}

/**
 * Hashes a file, also while another program writes it, until `written` resolves. Throws
 * what `written` rejects with.
 */
export async function hashFile(
  path: string,
  { engine, written = Promise.resolve(), ...options }: HashFileOptions,
): Promise<{ sha256: Sha256; hashed: FileIdentity }> {
  // Hashing the rest of a failed download would only delay the error.
  const stop = new AbortController();
  written.catch(() => stop.abort());
  let hashed: FileIdentity;
  const chunks = readFileChunks(path, {
    ...options,
    signal: anySignal(options.signal, stop.signal),
    byteCounts: growthUntil(written),
    onEndOfFile: (stat) => hashed = toFileIdentity(stat),
  });
  const digest = sha256OfChunks(chunks, engine);
  await Promise.allSettled([written, digest]);
  await written;
  return { sha256: await digest, hashed: hashed! };
}

/** Follows a file until `done` settles, for {@linkcode readFileChunks}. */
export async function* growthUntil(done: Promise<unknown>) {
  do yield Infinity; while (!await settlesWithin(done, FILE_GROWTH_POLL_MS));
  // The writer's last bytes.
  yield Infinity;
}

/** Reads from the disk in order. */
export async function sha256OfGrowingFile(
  file: GrowingFile,
  signal: AbortSignal,
): Promise<Sha256> {
  if (file.engine === "runtime") {
    const sha256 = await sha256InWorker(file, signal).catch(() => null);
    // After a failure, the main thread succeeds or has a better error.
    if (sha256) return sha256;
  }
  const byteCounts = file.watchPrefixLength(signal);
  const chunks = readFileChunks(file.path, { byteCounts, signal });
  return await sha256OfChunks(chunks, file.engine);
}

/** Returns `null` after a failure in the worker. */
async function sha256InWorker(
  file: GrowingFile,
  signal: AbortSignal,
): Promise<Sha256 | null> {
  const { path, size } = file;
  // Source text, because a bundled or compiled program has no worker file.
  const code = `import { createHash } from "node:crypto";
    (${hashFileInWorker})(globalThis, createHash("sha256"), ${
    JSON.stringify({ path, size })
  });`;
  const url = `data:text/javascript,${encodeURIComponent(code)}`;
  const worker = new Worker(url, { type: "module" });
  const digest = Promise.withResolvers<Sha256 | null>();
  worker.onmessage = ({ data }) => digest.resolve(data);
  worker.onerror = (event) => {
    event.preventDefault();
    digest.resolve(null);
  };
  const postCounts = async () => {
    let posted = 0;
    for await (const count of file.watchPrefixLength(signal)) {
      if (count - posted < MIN_POSTED_BYTES && count < size) continue;
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
  { path, size }: { path: string; size: number },
) {
  let file: Deno.FsFile | undefined;
  const buffer = new Uint8Array(1024 * 1024);
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
