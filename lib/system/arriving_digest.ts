/**
 * The digest of a file that is being filled. The runtime's engine gets a thread
 * of its own, as receiving and writing keep this one busy.
 *
 * @module
 */
import type { Hash } from "node:crypto";
import { ToolsmithError } from "../errors.ts";
import { type DigestEngine, type Sha256, sha256 } from "./digest.ts";
import { abortable } from "./time.ts";

/** What {@linkcode arrivingSha256} takes. */
export interface ArrivingDigestOptions {
  /** Size of the complete file, in bytes. */
  size: number;
  /**
   * Starts to count the bytes that are there from the first one on; the last
   * count is the size.
   */
  arrivals: () => AsyncIterable<number>;
  /** Who computes the digest. @default {"std"} */
  engine?: DigestEngine;
  /** Stops the computation when aborted. @default {undefined} */
  signal?: AbortSignal;
}

const CHUNK = 1024 * 1024;

/**
 * Computes the SHA-256 of a file while it is filled, from the bytes on the disk
 * in their order.
 *
 * Needs `--allow-read` for the file.
 *
 * @param path The file.
 * @param options Its size, how much of it is there, who computes.
 * @returns The digest.
 * @throws What `arrivals` throws, what a file that cannot be read throws, and the
 * signal's reason.
 */
export async function arrivingSha256(
  path: string,
  { size, arrivals, engine, signal }: ArrivingDigestOptions,
): Promise<Sha256> {
  if (engine === "runtime") {
    try {
      return await inThread(path, { size, arrivals, signal });
    } catch {
      // This thread fails in the same way, with a better error, or succeeds.
    }
  }
  return await sha256(arrivedChunks(path, arrivals(), signal), engine);
}

async function inThread(
  path: string,
  { size, arrivals, signal }: ArrivingDigestOptions,
): Promise<Sha256> {
  // Text, not a file: a bundled or compiled program has no file for it.
  const code = `import { createHash } from "node:crypto";
    (${serve})(globalThis, createHash("sha256"), ${
    JSON.stringify({ path, size, chunk: CHUNK })
  });`;
  const url = `data:text/javascript,${encodeURIComponent(code)}`;
  const thread = new Worker(url, { type: "module" });
  const digest = Promise.withResolvers<Sha256>();
  thread.onmessage = ({ data }: MessageEvent<Sha256 | null>) =>
    data === null ? digest.reject(new Error("failed")) : digest.resolve(data);
  thread.onerror = (event) => {
    event.preventDefault();
    digest.reject(new Error(event.message));
  };
  const report = async () => {
    let posted = 0;
    for await (const count of arrivals()) {
      if (count - posted < CHUNK && count < size) continue;
      thread.postMessage(posted = count);
    }
  };
  try {
    await Promise.race([report(), digest.promise]);
    return await abortable(digest.promise, signal);
  } finally {
    thread.terminate();
  }
}

/**
 * Runs in the thread: hashes up to each count that it receives, and sends the
 * digest of all; `null` for an error, which Deno would print. Only its text gets
 * there: it must not name anything outside.
 */
function serve(
  thread: Worker,
  hash: Hash,
  { path, size, chunk }: { path: string; size: number; chunk: number },
) {
  let file: Deno.FsFile | undefined;
  const buffer = new Uint8Array(chunk);
  let position = 0;
  thread.onmessage = ({ data: end }: MessageEvent<number>) => {
    try {
      file ??= Deno.openSync(path);
      while (position < end) {
        const count = file.readSync(buffer.subarray(0, end - position));
        if (count === null) throw new Error("cut short");
        hash.update(buffer.subarray(0, count));
        position += count;
      }
      if (position === size) thread.postMessage(hash.digest("hex"));
    } catch {
      thread.postMessage(null);
    }
  };
}

/** The bytes of a file as they arrive, all in the same buffer. */
async function* arrivedChunks(
  path: string,
  arrivals: AsyncIterable<number>,
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  using file = await Deno.open(path);
  const buffer = new Uint8Array(CHUNK);
  let position = 0;
  for await (const end of arrivals) {
    while (position < end) {
      signal?.throwIfAborted();
      const want = buffer.subarray(0, Math.min(end - position, CHUNK));
      const count = await file.read(want);
      if (count === null) {
        throw new ToolsmithError(
          "file_unreadable",
          `Cannot read ${path}: it was cut short`,
          { hint: "try again, and find out what else writes there" },
        );
      }
      position += count;
      yield buffer.subarray(0, count);
    }
  }
}
