/**
 * Notices when another program makes no progress.
 *
 * @module
 */
import { walk } from "@std/fs";

const WATCH_MS = 200;

/** Something that is being watched; disposing ends the watch. */
export interface Growth extends AsyncDisposable {
  /** Aborted when it has not grown for too long. */
  stalled: AbortSignal;
}

/**
 * Follows a count of bytes while another program makes it grow.
 *
 * @param measure Returns the count: {@linkcode directoryBytes}, for instance.
 * @param stallMs Time without growth that counts as a stall, in milliseconds.
 * @param onBytes Called with the count whenever it has changed.
 * @returns The watch.
 */
export function watchGrowth(
  measure: () => Promise<number>,
  stallMs: number,
  onBytes?: (bytes: number) => void,
): Growth {
  const stall = new AbortController();
  let last = 0;
  let since = performance.now();
  let watching = Promise.resolve();
  const look = async () => {
    const bytes = await measure();
    if (bytes !== last) {
      last = bytes;
      since = performance.now();
      onBytes?.(bytes);
    } else if (performance.now() - since > stallMs) stall.abort();
  };
  const timer = setInterval(() => {
    watching = watching.then(look);
  }, WATCH_MS);
  return {
    stalled: stall.signal,
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await watching;
    },
  };
}

/**
 * Counts the bytes below a directory.
 *
 * Needs `--allow-read` for it.
 *
 * @param dir The directory; it may not exist yet.
 * @returns The sum of the sizes of its files.
 */
export async function directoryBytes(dir: string): Promise<number> {
  let bytes = 0;
  try {
    for await (const { path } of walk(dir, { includeDirs: false })) {
      bytes += (await Deno.lstat(path)).size;
    }
  } catch {
    // The directory is not there yet, or a file went away while we looked.
  }
  return bytes;
}

/**
 * Counts what a process has read, from Linux's `/proc/PID/io`.
 *
 * Needs `--allow-all`, as all of `/proc` does.
 *
 * @param pid The process.
 * @returns The count in bytes, or `undefined` where the system does not say.
 */
export async function bytesReadBy(pid: number): Promise<number | undefined> {
  try {
    const text = await Deno.readTextFile(`/proc/${pid}/io`);
    return Number(/^rchar: (\d+)$/m.exec(text)?.[1]);
  } catch {
    return undefined;
  }
}
