/**
 * Directories in the temporary one that a publish fills. What a process that was
 * killed has left of them, the next one removes.
 *
 *     <TMPDIR>/toolsmith-<purpose>-<id>/files/
 *     <TMPDIR>/toolsmith-<purpose>-<id>/lock       flock
 *
 * @module
 */
import { dirname, join } from "../path.ts";
import {
  absentAs,
  fingerprint,
  makeTemporaryDir,
  removeTree,
} from "../system/files.ts";
import { tryLock } from "../system/lock.ts";

/** A directory of this process; disposing it removes it. */
export interface OwnDir extends AsyncDisposable {
  /** Its path; nothing lies in it. */
  path: string;
}

const NAME = /^toolsmith-(?:publish|verify)-/;
const FILES = "files";
const LOCK = "lock";

/**
 * Makes a directory, and removes those that have no owner any more.
 *
 * Needs `--allow-read` and `--allow-write` for the temporary directory.
 *
 * @param purpose Part of its name.
 * @returns The directory.
 */
export async function makeOwnDir(
  purpose: "publish" | "verify",
): Promise<OwnDir> {
  while (true) {
    const dir = await makeTemporaryDir(`toolsmith-${purpose}-`);
    // As long as it is not locked, another process may sweep it away.
    const own = await absentAs(undefined, take(dir));
    if (!own) continue;
    // Where that is not allowed, more is left: no reason to publish nothing.
    await sweep(dirname(dir)).catch(() => {});
    return own;
  }
}

async function take(dir: string): Promise<OwnDir | undefined> {
  const held = await tryLock(join(dir, LOCK));
  if (!held) return undefined;
  const path = join(dir, FILES);
  try {
    await Deno.mkdir(path);
  } catch (error) {
    held[Symbol.dispose]();
    throw error;
  }
  return {
    path,
    async [Symbol.asyncDispose]() {
      await clear(dir);
      held[Symbol.dispose]();
    },
  };
}

/** The lock goes last: without it nobody would know that the rest has no owner. */
async function clear(dir: string) {
  await removeTree(join(dir, FILES));
  await removeTree(dir);
}

async function sweep(tmp: string) {
  for await (const { name, isDirectory } of Deno.readDir(tmp)) {
    if (!isDirectory || !NAME.test(name)) continue;
    const dir = join(tmp, name);
    try {
      // Killed before it was locked, or after its files were gone: it is empty.
      const lockless = await fingerprint(join(dir, LOCK)) === undefined;
      using free = lockless ? undefined : await tryLock(join(dir, LOCK));
      if (free) await clear(dir);
      if (lockless) await Deno.remove(dir);
    } catch {
      // Another process has swept it, or it is another user's.
    }
  }
}
