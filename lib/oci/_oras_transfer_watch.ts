/**
 * Watches the progress of `oras pull` and `oras push`, to detect stalls and pulls
 * that write too much.
 */
import { ToolsmithError } from "../errors.ts";
import { startStallTimer } from "../system/stall_timer.ts";

const MEASURE_INTERVAL_MS = 200;

/**
 * Polls a byte count while oras transfers files. `what` is the operation for messages,
 * such as `pull ghcr.io/owner/repo:1.0`.
 */
export function watchOrasTransfer(
  what: string,
  measure: () => Promise<number>,
  { stallTimeoutMs, maxBytes = Infinity, onBytes }: {
    stallTimeoutMs?: number;
    maxBytes?: number;
    /** Called with the byte count whenever it has changed. */
    onBytes?: (bytes: number) => void;
  },
) {
  const tooManyBytes = new AbortController();
  const { signal } = tooManyBytes;
  const stallTimer = startStallTimer(what, { stallTimeoutMs, signal });
  let lastBytes = 0;
  let watching = Promise.resolve();
  const measureOnce = async () => {
    const bytes = await measure();
    if (bytes > maxBytes) {
      const error = new ToolsmithError(
        "artifact_unsafe",
        `Cannot ${what}: oras wrote ${bytes} bytes, the manifest declares ${maxBytes}`,
        { hint: "check who published the artifact; nothing was kept" },
      );
      tooManyBytes.abort(error);
    } else if (bytes !== lastBytes) {
      lastBytes = bytes;
      stallTimer.restart();
      onBytes?.(bytes);
    }
  };
  // One after the other, so that no older count follows a newer one.
  const measureNow = () => watching = watching.then(measureOnce);
  const timer = setInterval(measureNow, MEASURE_INTERVAL_MS);
  return {
    /** Aborts with `transfer_stalled`, or with `artifact_unsafe` above `maxBytes`. */
    signal: stallTimer.signal,
    measureNow,
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await watching;
      stallTimer.pause();
    },
  };
}

/**
 * Returns the total size of all files below a directory, in bytes; 0 if it does not
 * exist yet.
 */
export async function directorySize(dir: string): Promise<number> {
  // A static import would load Deno's Node emulation at every start.
  const { walk } = await import("@std/fs/walk");
  let bytes = 0;
  try {
    for await (const { path } of walk(dir, { includeDirs: false })) {
      bytes += (await Deno.lstat(path)).size;
    }
  } catch {
    // The directory does not exist yet, or oras renamed a file meanwhile.
  }
  return bytes;
}

/**
 * Returns how many bytes a process has read, from Linux's `/proc/PID/io`; `undefined`
 * if the system does not report it. Needs `--allow-all`, as all of `/proc` does.
 */
export async function bytesReadByProcess(
  pid: number,
): Promise<number | undefined> {
  try {
    const text = await Deno.readTextFile(`/proc/${pid}/io`);
    return Number(/^rchar: (\d+)$/m.exec(text)?.[1]);
  } catch {
    return undefined;
  }
}
