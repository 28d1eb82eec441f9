/**
 * Watches the files that another program writes.
 *
 * @module
 */
import { join } from "@std/path";

const WATCH_MS = 200;

/** A folder that is being watched; disposing ends the watch. */
export interface Growth extends AsyncDisposable {
  /** Aborted when the folder has not grown for too long. */
  stalled: AbortSignal;
}

/**
 * Follows how many bytes a folder holds while another program fills it.
 *
 * Needs `--allow-read` for it.
 *
 * @param folder The folder; it may not exist yet.
 * @param stallMs Time without growth that counts as a stall, in milliseconds.
 * @param onBytes Called with the count of bytes whenever it has changed.
 * @returns The watch.
 */
export function watchGrowth(
  folder: string,
  stallMs: number,
  onBytes?: (bytes: number) => void,
): Growth {
  const stall = new AbortController();
  let last = 0;
  let since = Date.now();
  let watching = Promise.resolve();
  const look = async () => {
    const bytes = await folderBytes(folder);
    if (bytes !== last) {
      last = bytes;
      since = Date.now();
      onBytes?.(bytes);
    } else if (Date.now() - since > stallMs) stall.abort();
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

async function folderBytes(folder: string): Promise<number> {
  let bytes = 0;
  try {
    for await (const entry of Deno.readDir(folder)) {
      const path = join(folder, entry.name);
      bytes += entry.isDirectory
        ? await folderBytes(path)
        : (await Deno.lstat(path)).size;
    }
  } catch {
    // The folder is not there yet, or a file went away while we looked.
  }
  return bytes;
}
