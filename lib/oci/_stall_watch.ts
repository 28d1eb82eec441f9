/**
 * Notices when another program makes no progress.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";

const WATCH_MS = 200;

/** A program that is being watched; disposing ends the watch. */
export interface Growth extends AsyncDisposable {
  /** Aborts when it has not grown for too long, or too far; its reason says so. */
  readonly signal: AbortSignal;
  /** Measures once more. */
  look(): Promise<void>;
}

/** What {@linkcode watchGrowth} takes. */
export interface GrowthOptions {
  /** What the program does, for errors, such as `pull ghcr.io/owner/repo:1.0`. */
  what: string;
  /** Time without growth that counts as a stall, in milliseconds. */
  stallMs: number;
  /** The most that the count may become. @default {Infinity} */
  maxBytes?: number;
  /** Called with the count of bytes whenever it has changed. */
  onBytes?: (bytes: number) => void;
}

/**
 * Follows a count of bytes while another program makes it grow.
 *
 * @param measure Returns the count: {@linkcode directoryBytes}, for instance.
 * @param options Limits, and whom to notify.
 * @returns The watch. Its signal aborts with `transfer_stalled`, or with
 * `artifact_unsafe` when there is more than there may be.
 */
export function watchGrowth(
  measure: () => Promise<number>,
  options: GrowthOptions,
): Growth {
  const { what, stallMs, maxBytes = Infinity, onBytes } = options;
  const stop = new AbortController();
  let last = 0;
  let since = performance.now();
  let watching = Promise.resolve();
  const look = async () => {
    const bytes = await measure();
    if (bytes > maxBytes) {
      stop.abort(tooMuch(what, bytes, maxBytes));
    } else if (bytes !== last) {
      last = bytes;
      since = performance.now();
      onBytes?.(bytes);
    } else if (performance.now() - since > stallMs) {
      stop.abort(stallError(what, stallMs));
    }
  };
  const timer = setInterval(() => {
    watching = watching.then(look);
  }, WATCH_MS);
  return {
    signal: stop.signal,
    look,
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await watching;
    },
  };
}

/**
 * The error of a transfer or request that does not move any more.
 *
 * @param what What could not be done.
 * @param stallMs How long nothing moved, in milliseconds.
 */
export function stallError(what: string, stallMs: number): ToolsmithError {
  return new ToolsmithError(
    "transfer_stalled",
    `Cannot ${what}: nothing moved for ${stallMs / 1000} s`,
    { hint: "try again, or allow more time: --stall-timeout SECONDS" },
  );
}

function tooMuch(what: string, bytes: number, max: number): ToolsmithError {
  return new ToolsmithError(
    "artifact_unsafe",
    `Cannot ${what}: ${bytes} bytes were written, and its manifest has ${max}`,
    { hint: "nothing was kept; find out who made the artifact" },
  );
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
  // It would load all of Deno's Node emulation at each start.
  const { walk } = await import("@std/fs/walk");
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
