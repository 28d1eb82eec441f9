/**
 * Free space on a filesystem.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";

/** Kept free for records, and for whatever else writes at the same time. */
const RESERVE = 8 * 1024 * 1024;

/**
 * Refuses to begin what the disk has no room for.
 *
 * Needs `--allow-read` for the directory and `--allow-sys=statfs`; without the
 * latter nothing is checked.
 *
 * @param dir A directory on the filesystem.
 * @param bytes How much will be written, in bytes.
 * @throws {ToolsmithError} `disk_full`, with both figures.
 */
export async function requireSpace(dir: string, bytes: number) {
  const free = await freeBytes(dir);
  if (free === undefined || bytes + RESERVE <= free) return;
  throw new ToolsmithError(
    "disk_full",
    `Not enough space at ${dir}: ${bytes} bytes are needed, ${free} are free`,
    {
      hint:
        "free some (toolsmith cache prune), or put the cache elsewhere: TOOLSMITH_CACHE=DIR",
    },
  );
}

/**
 * Reads how much an unprivileged user may still write.
 *
 * Needs `--allow-read` for the directory and `--allow-sys=statfs`.
 *
 * @param dir A directory on the filesystem.
 * @returns The space in bytes, or `undefined` where it is not known.
 */
export async function freeBytes(dir: string): Promise<number | undefined> {
  // Modules of Node take milliseconds of every start: this one waits its turn.
  const { statfs } = await import("node:fs/promises");
  try {
    const { bavail, bsize } = await statfs(dir);
    return bavail * bsize;
  } catch {
    return undefined;
  }
}
