/**
 * What the cache does with files and directories, and `Deno` alone does not.
 *
 * @module
 */
import { systemError } from "../errors.ts";
import { dirname, join } from "../path.ts";
import { writeAll } from "./streams.ts";

/**
 * What must not have changed for a file to be the one that was seen before.
 * Deno reports ctime in whole seconds: a change within the same one shows in the
 * others alone.
 */
export interface Fingerprint {
  /** Size, in bytes. */
  size: number;
  /** Time of last modification, in milliseconds since the epoch. */
  mtime: number | null;
  /** Time of last change, in milliseconds since the epoch. */
  ctime: number | null;
  /** The inode. */
  inode: number | null;
}

/**
 * Whether a value of JSON is a fingerprint.
 *
 * @param value The value.
 * @returns Whether it has the fields, whatever else it has.
 */
export function isFingerprint(value: unknown): value is Fingerprint {
  if (typeof value !== "object" || value === null) return false;
  const { size, mtime, ctime, inode } = value as Record<string, unknown>;
  return typeof size === "number" &&
    [mtime, ctime, inode].every((it) => it === null || typeof it === "number");
}

/**
 * Takes a file's fingerprint.
 *
 * Needs `--allow-read` for it.
 *
 * @param path The file.
 * @returns The fingerprint, or `undefined` where there is no plain file.
 */
export async function fingerprint(
  path: string,
): Promise<Fingerprint | undefined> {
  const stat = await absentAs(undefined, Deno.lstat(path));
  return stat?.isFile ? fingerprintOf(stat) : undefined;
}

/**
 * Takes the fingerprint of a file that is open.
 *
 * @param stat What the system says of it.
 */
export function fingerprintOf(stat: Deno.FileInfo): Fingerprint {
  return {
    size: stat.size,
    mtime: stat.mtime?.getTime() ?? null,
    ctime: stat.ctime?.getTime() ?? null,
    inode: stat.ino,
  };
}

/**
 * Whether a file is still the one that was seen before.
 *
 * @param now Its fingerprint, if it is there.
 * @param before What it was; other fields do not count.
 * @returns `true` also where neither is there.
 */
export function isSame(
  now: Fingerprint | undefined,
  before: Fingerprint | undefined,
): boolean {
  if (!now || !before) return now === before;
  return now.size === before.size && now.mtime === before.mtime &&
    now.ctime === before.ctime && now.inode === before.inode;
}

/**
 * Names the version of a program or firmware. The next one in its place has
 * another time of modification; the same package on another host has the same.
 *
 * @param path The file.
 */
export async function fileVersion(path: string) {
  const { size, mtime } = await fingerprint(path) ?? {};
  return { path, size, mtime };
}

/**
 * What a file takes on the disk: less than its size where it has holes.
 *
 * @param stat What the system says of it.
 * @returns Bytes.
 */
export function bytesOnDisk({ size, blocks }: Deno.FileInfo): number {
  // POSIX counts blocks of 512 bytes here, whatever the filesystem's are.
  return Math.min(size, (blocks ?? Infinity) * 512);
}

/**
 * Makes what was written survive a power loss. Windows has no such for directories.
 *
 * Needs `--allow-read` and `--allow-write` for it.
 *
 * @param path A file or directory.
 */
export async function syncToDisk(path: string): Promise<void> {
  const { isDirectory } = await Deno.stat(path);
  if (isDirectory && Deno.build.os === "windows") return;
  using file = await Deno.open(path, { read: true, write: !isDirectory });
  await file.sync();
}

/**
 * Writes a file whole or not at all, whatever lies there: the text goes to a
 * new file with a random name, which is synced and takes its place. No link is
 * followed.
 *
 * Needs `--allow-read` and `--allow-write` for it and its directory.
 *
 * @param path The file.
 * @param text What it is to hold.
 * @param options Its permissions.
 */
export async function replaceFile(
  path: string,
  text: string,
  options: ReplaceFileOptions = {},
): Promise<void> {
  const { mode = 0o644, exact = false, via = dirname(path) } = options;
  const fresh = join(via, `.${crypto.randomUUID()}.new`);
  const file = await Deno.open(fresh, { write: true, createNew: true, mode });
  try {
    {
      using _open = file;
      await writeAll(file, new TextEncoder().encode(text));
      await file.sync();
    }
    if (exact && Deno.build.os !== "windows") await Deno.chmod(fresh, mode);
    await Deno.rename(fresh, path);
  } catch (error) {
    await Deno.remove(fresh).catch(() => {});
    throw error;
  }
}

/** What {@linkcode replaceFile} takes. */
export interface ReplaceFileOptions {
  /** Permissions of the file; the process's umask takes some away. @default {0o644} */
  mode?: number;
  /** Ignore the umask. @default {false} */
  exact?: boolean;
  /** Where the new file is written, on the same filesystem. @default {undefined} beside it */
  via?: string;
}

/**
 * Reads a small text file. A symbolic link in its place is not followed, and a
 * pipe is not opened.
 *
 * Needs `--allow-read` for it.
 *
 * @param path The file.
 * @param maxBytes The largest size that is read, in bytes.
 * @returns The text; `undefined` where no plain file of that size exists.
 */
export async function readPlainText(
  path: string,
  maxBytes: number,
): Promise<string | undefined> {
  const stat = await absentAs(undefined, Deno.lstat(path));
  if (!stat?.isFile || stat.size > maxBytes) return undefined;
  return await absentAs(undefined, Deno.readTextFile(path));
}

/**
 * Reads a small text file with its inode and time of last change: a copy differs,
 * and so does what comes with an archive or a repository.
 *
 * Needs `--allow-read` for it.
 *
 * @param path The file.
 * @param maxBytes The largest size that is read, in bytes.
 * @returns The text and the two; `undefined` where {@linkcode readPlainText}
 * returns that, or the file is empty.
 */
export async function readOriginal(
  path: string,
  maxBytes: number,
): Promise<string | undefined> {
  const text = await readPlainText(path, maxBytes);
  const file = await fingerprint(path);
  return text && file && `${text} ${file.inode} ${file.ctime}`;
}

/**
 * Makes a new directory for temporary files, with a random name.
 *
 * Needs `--allow-write` for the directory that it is made in.
 *
 * @param prefix How its name begins.
 * @param parent Where. @default {undefined} where this system has such
 * @returns Its path.
 * @throws {ToolsmithError} `usage`, with the variable to set; `disk_full`.
 */
export async function makeTemporaryDir(
  prefix: string,
  parent?: string,
): Promise<string> {
  return await Deno.makeTempDir({ dir: parent, prefix }).catch((cause) => {
    const variable = Deno.build.os === "windows" ? "TEMP" : "TMPDIR";
    const where = parent === undefined ? "" : ` in ${parent}`;
    throw systemError(cause, {
      code: "usage",
      what: `Cannot make a temporary directory${where}`,
      hint: `set ${variable} to a directory that exists and can be written`,
    });
  });
}

/**
 * Removes a file, or a directory and all it holds; one that is not there is fine.
 *
 * Needs `--allow-write` for it.
 *
 * @param path The file or directory.
 */
export async function removeTree(path: string): Promise<void> {
  await absentAs(undefined, Deno.remove(path, { recursive: true }));
}

/**
 * Takes a missing file or directory for a value.
 *
 * @param value The value.
 * @param work Something that may fail with `Deno.errors.NotFound`.
 * @returns The work's result, or the value.
 */
export async function absentAs<T, V>(
  value: V,
  work: Promise<T>,
): Promise<T | V> {
  try {
    return await work;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return value;
    throw error;
  }
}
