/**
 * Exclusive file locks between processes, which the system releases when the
 * holder exits.
 */
import { ToolsmithError } from "../errors.ts";
import { orIfDenied, orIfError, orIfNotFound, removeTree } from "./files.ts";
import { settlesWithin, sleep } from "./time.ts";

/** Negligible for the CPU, and short compared to a run. */
const LOCK_POLL_MS = 40;

/**
 * Locks a file (flock on Linux and macOS, LockFileEx on Windows), and waits while
 * another process holds the lock, after one call of `onWait`; disposing releases it. The
 * empty lock file is never removed, because two processes could then hold locks on the
 * same name. The file is private to this user; a symbolic link in its place is rejected.
 */
export async function acquireFileLock(
  path: string,
  { onWait, signal }: { onWait?: () => void; signal?: AbortSignal } = {},
): Promise<Disposable> {
  signal?.throwIfAborted();
  using undo = new DisposableStack();
  const poll = createLockPoll(undo.use(await openLockFile(path)));
  if (!await poll()) {
    onWait?.();
    // A blocking lock() could not be cancelled.
    do await sleep(LOCK_POLL_MS, signal); while (!await poll());
  }
  return undo.move();
}

/** Locks a file as {@linkcode acquireFileLock} does, but does not wait. */
export async function tryFileLock(path: string) {
  using undo = new DisposableStack();
  const poll = createLockPoll(undo.use(await openLockFile(path)));
  return await poll() ? undo.move() : undefined;
}

/** Opens a lock file safely: another user may have placed a link there. */
async function openLockFile(path: string): Promise<Deno.FsFile> {
  for (;;) {
    const before = await orIfNotFound(Deno.lstat(path));
    if (before && !before.isFile) throw notRegularFileError(path);
    // createNew neither follows a link nor creates its target.
    const flags = before ? {} : { createNew: true, mode: 0o600 };
    const opened = Deno.open(path, { read: true, write: true, ...flags });
    // Another process may create or remove the file concurrently.
    const { NotFound, AlreadyExists } = Deno.errors;
    const file = await orIfError(opened, before ? NotFound : AlreadyExists);
    if (!file) continue;
    if (!before || Deno.build.os === "windows") return file;
    const { ino, dev } = await file.stat();
    if (ino === before.ino && dev === before.dev) return file;
    file.close();
    throw notRegularFileError(path);
  }
}

function notRegularFileError(path: string): ToolsmithError {
  const message = `Cannot lock ${path}: not a regular file`;
  const hint = `remove ${path}: Toolsmith keeps a lock file at this path`;
  return new ToolsmithError("file_unreadable", message, { hint });
}

/** Older Deno versions have `lock` but not `tryLock`. */
type FileWithTryLock = Deno.FsFile & {
  tryLock?: (exclusive: boolean) => Promise<boolean>;
};

function createLockPoll(file: FileWithTryLock): () => Promise<boolean> {
  const { tryLock } = file;
  if (tryLock) return () => tryLock.call(file, true);
  // Older Deno versions can only wait: assume another holder after one interval.
  const granted = file.lock(true).then(() => true);
  return async () => await settlesWithin(granted, LOCK_POLL_MS) && granted;
}

/**
 * Creates a private directory, which disposing removes and unlocks; `undefined` if
 * another process holds the lock. If the lock is free, the directory's owner was killed.
 */
export async function createLockedStagingDir(path: string, lockFile: string) {
  await using undo = new AsyncDisposableStack();
  if (!undo.use(await tryFileLock(lockFile))) return undefined;
  await Deno.mkdir(path, { mode: 0o700 });
  undo.defer(() => removeTree(path));
  const all = undo.move();
  return { path, [Symbol.asyncDispose]: () => all.disposeAsync() };
}

/**
 * Removes a staging directory; `false` if a process or another user holds the lock
 * file. Files of another user stay.
 */
export async function removeUnlockedStagingDir(path: string, lockFile: string) {
  using free = await orIfDenied(tryFileLock(lockFile));
  if (free) await orIfDenied(removeTree(path));
  return free !== undefined;
}
