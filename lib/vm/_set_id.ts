/**
 * What a guest leaves in exports: its root can give a file the set-user-ID bit,
 * and on the host the file is this user's.
 *
 * @module
 */
import { join } from "../path.ts";
import type { GuestShare } from "../qemu/args.ts";

/** chmod(2): set-user-ID and set-group-ID. */
const SET_ID = 0o6000;
const OWNER_ALL = 0o700;

/**
 * Takes the set-user-ID and set-group-ID bits from every file of the exports.
 * Links are not followed. Windows has no such bits.
 *
 * Needs `--allow-read` and `--allow-write` for the exports.
 *
 * @param shares The machine's directories; QEMU has ended.
 */
export async function clearSetIdBits(shares: GuestShare[]): Promise<void> {
  if (Deno.build.os === "windows") return;
  const dirs = shares.filter(({ writable }) => writable)
    .map(({ path }) => path);
  for (let dir = dirs.pop(); dir !== undefined; dir = dirs.pop()) {
    // Others can run a file in a directory that its owner cannot list.
    await setMode(dir, (mode) => mode | OWNER_ALL);
    for (const { name, isDirectory, isFile } of await entries(dir)) {
      const path = join(dir, name);
      if (isDirectory) dirs.push(path);
      else if (isFile) await setMode(path, (mode) => mode & ~SET_ID);
    }
  }
}

async function setMode(path: string, change: (mode: number) => number) {
  try {
    const { mode, isSymlink } = await Deno.lstat(path);
    if (mode === null || isSymlink) return;
    const bits = mode & 0o7777;
    if (change(bits) !== bits) await Deno.chmod(path, change(bits));
  } catch (error) {
    // A file that is gone, or not this user's, needs no care.
    if (error instanceof Deno.errors.NotCapable) throw error;
  }
}

async function entries(dir: string): Promise<Deno.DirEntry[]> {
  try {
    return await Array.fromAsync(Deno.readDir(dir));
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return [];
  }
}
