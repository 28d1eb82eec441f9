/**
 * A lock among processes that ends with its holder, however that ends.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { absentAs } from "./files.ts";
import { sleep } from "./time.ts";

/** What {@linkcode lock} takes. */
export interface LockOptions {
  /** Called once if another process has the lock. @default {undefined} */
  onWait?: () => void;
  /** Ends the wait when aborted; a deadline is such a signal. @default {undefined} */
  signal?: AbortSignal;
}

/** Nothing to a processor, and what eight processes wait in vain is no part of a run. */
const POLL_MS = 40;

/**
 * Takes the lock of a file (flock on Linux and macOS, LockFileEx on Windows),
 * waiting while another process has it. The file stays behind, empty: to remove
 * it would let two processes hold locks of the same name. It is private to this
 * user, and a symbolic link in its place is not followed.
 *
 * Needs `--allow-read` and `--allow-write` for the file.
 *
 * @param path The lock's file, made if it is not there.
 * @param options Who is notified of a wait, and what ends it.
 * @returns The lock; disposing it releases it.
 * @throws {ToolsmithError} `file_unreadable` when a link, a directory or a
 * device is in the file's place.
 * @throws The signal's reason when it is aborted.
 */
export async function lock(
  path: string,
  options: LockOptions = {},
): Promise<Disposable> {
  options.signal?.throwIfAborted();
  const file = await open(path);
  const request = requester(file);
  try {
    for (let waiting = false; !await request(); waiting = true) {
      if (!waiting) options.onWait?.();
      // A blocking lock() could not be cancelled.
      await sleep(POLL_MS, options.signal);
    }
  } catch (error) {
    file.close();
    throw error;
  }
  return { [Symbol.dispose]: () => file.close() };
}

/**
 * Takes the lock of a file if nobody has it.
 *
 * Needs `--allow-read` and `--allow-write` for the file.
 *
 * @param path The lock's file, made if it is not there.
 * @returns The lock, or `undefined` if another process has it.
 * @throws {ToolsmithError} `file_unreadable`, as {@linkcode lock}.
 */
export async function tryLock(path: string): Promise<Disposable | undefined> {
  const file = await open(path);
  let held = false;
  try {
    held = await requester(file)();
  } finally {
    if (!held) file.close();
  }
  return held ? { [Symbol.dispose]: () => file.close() } : undefined;
}

/** Opens the file of a lock, for which another user may have put a link there. */
async function open(path: string): Promise<Deno.FsFile> {
  for (;;) {
    const options = { read: true, write: true };
    const before = await absentAs(undefined, Deno.lstat(path));
    if (before && !before.isFile) throw notPlain(path);
    // This neither follows a link nor makes what a link names.
    const how = before ? {} : { createNew: true, mode: 0o600 };
    let file: Deno.FsFile;
    try {
      file = await Deno.open(path, { ...options, ...how });
    } catch (error) {
      // Another process made or removed it in between.
      const again = before
        ? error instanceof Deno.errors.NotFound
        : error instanceof Deno.errors.AlreadyExists;
      if (again) continue;
      throw error;
    }
    if (!before || await isOpened(before, file)) return file;
    file.close();
    throw notPlain(path);
  }
}

/** Whether what was opened is what lay there just before. */
async function isOpened(before: Deno.FileInfo, file: Deno.FsFile) {
  if (Deno.build.os === "windows") return true;
  const { ino, dev } = await file.stat();
  return ino === before.ino && dev === before.dev;
}

function notPlain(path: string): ToolsmithError {
  return new ToolsmithError(
    "file_unreadable",
    `Cannot lock ${path}: it is not a plain file`,
    { hint: "find out who put it there, and remove it" },
  );
}

/** `tryLock` came to Deno after `lock`. */
type MaybeTryLock = Deno.FsFile & {
  tryLock?: (exclusive: boolean) => Promise<boolean>;
};

/** Returns a function that asks for the lock, and reports whether it is there. */
function requester(file: MaybeTryLock): () => Promise<boolean> {
  const { tryLock } = file;
  if (tryLock) return () => tryLock.call(file, true);
  // Older versions of Deno can only wait: what does not come soon is held.
  const granted = file.lock(true).then(() => true);
  granted.catch(() => {});
  return () => {
    let timer: ReturnType<typeof setTimeout>;
    const late = new Promise<boolean>((done) => {
      timer = setTimeout(() => done(false), POLL_MS);
    });
    return Promise.race([granted, late]).finally(() => clearTimeout(timer));
  };
}
