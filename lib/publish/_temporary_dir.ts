/**
 * Locked temporary directories for a publish. The next publish removes those that
 * a killed process left behind.
 *
 *     <TMPDIR>/toolsmith-<purpose>-<id>/files/
 *     <TMPDIR>/toolsmith-<purpose>-<id>/lock       flock
 */
import { dirname, join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import {
  makeTemporaryDir,
  orIfNotFound,
  readFileIdentity,
  removeTree,
} from "../system/files.ts";
import { createLockedStagingDir, tryFileLock } from "../system/lock.ts";

const TEMPORARY_DIR_NAME_PATTERN = /^toolsmith-(?:publish|verify)-/;

const pathsIn = (dir: string) => [join(dir, "files"), join(dir, "lock")];

/**
 * Makes a directory locked by this process, and removes abandoned ones. Disposing
 * removes it.
 */
export async function makeLockedTemporaryDir(purpose: "publish" | "verify") {
  while (true) {
    const dir = await makeTemporaryDir(`toolsmith-${purpose}-`);
    const [path, lock] = pathsIn(dir);
    // Until it is locked, another process may remove it.
    const files = await orIfNotFound(createLockedStagingDir(path, lock));
    if (!files) continue;
    // Failing to clean up must not keep an image from being published.
    await removeAbandonedDirs(dirname(dir)).catch(() => {});
    return {
      path,
      async [Symbol.asyncDispose]() {
        await files[Symbol.asyncDispose]();
        await removeTree(dir);
      },
    };
  }
}

async function removeAbandonedDirs(tmp: string) {
  for await (const { name, isDirectory } of Deno.readDir(tmp)) {
    if (!isDirectory || !TEMPORARY_DIR_NAME_PATTERN.test(name)) continue;
    const dir = join(tmp, name);
    const [files, lock] = pathsIn(dir);
    try {
      const isFilled = await orIfNotFound(Deno.lstat(files)) !== undefined;
      if (await readFileIdentity(lock) === undefined) {
        // Killed before locking, or after cleaning up; or the oras that outlived a
        // killed publish has created the files again, which a lock would precede.
        await Deno.remove(dir, { recursive: isFilled });
        continue;
      }
      // Held until the end, because the owner may be about to lock it.
      using free = await tryFileLock(lock);
      if (!free) continue;
      // Remove the lock last: without it the rest would not count as abandoned.
      await removeTree(files);
      await removeTree(dir);
    } catch {
      // Another process removed it, or it belongs to another user.
    }
  }
}

export function fullTemporaryDirError(message: string, cause?: unknown) {
  const hint = "set TMPDIR to a directory with more free space";
  return new ToolsmithError("disk_full", message, { hint, cause });
}
