/**
 * Staging directories that are locked while in use. If the lock is free, the owner
 * was killed and another process may remove the directory.
 */
import { orIfDenied, removeTree } from "./files.ts";
import { tryFileLock } from "./lock.ts";

/**
 * Creates a private directory, which disposing removes and unlocks; `undefined` if
 * another process holds the lock.
 */
export async function createLockedStagingDir(
  path: string,
  lockFile: string,
) {
  await using undo = new AsyncDisposableStack();
  const held = await tryFileLock(lockFile);
  if (!held) return undefined;
  undo.use(held);
  await Deno.mkdir(path, { mode: 0o700 });
  undo.defer(() => removeTree(path));
  const all = undo.move();
  return { path, [Symbol.asyncDispose]: () => all.disposeAsync() };
}

/**
 * Removes a staging directory; `false` if a process or another user holds the lock
 * file. Files of another user stay.
 */
export async function removeUnlockedStagingDir(
  path: string,
  lockFile: string,
): Promise<boolean> {
  using free = await orIfDenied(tryFileLock(lockFile));
  if (free) await orIfDenied(removeTree(path));
  return free !== undefined;
}
