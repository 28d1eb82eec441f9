/**
 * File helpers that Deno lacks: file identity, atomic replacement, fsync, bounded
 * reads.
 */
import { systemError, ToolsmithError } from "../errors.ts";
import { dirname, join } from "../path.ts";
import { isJsonObject } from "./json.ts";
import { writeAll } from "./write_all.ts";

/**
 * Metadata that changes when a file is modified or replaced. Deno reports ctime in
 * whole seconds, so a change within one second shows only in the other fields. Times
 * are in milliseconds since the epoch.
 */
export interface FileIdentity {
  size: number;
  mtime: number | null;
  ctime: number | null;
  /** Inode number; `null` on Windows. */
  inode: number | null;
}

const IDENTITY_FIELDS = ["size", "mtime", "ctime", "inode"] as const;
const MAX_REMOVE_ATTEMPTS = 10;

export function isFileIdentity(value: unknown): value is FileIdentity {
  return isJsonObject(value) && value.size !== null &&
    IDENTITY_FIELDS.every((field) =>
      value[field] === null || typeof value[field] === "number"
    );
}

/** Reads a file's identity; `undefined` unless the path is a regular file. */
export async function readFileIdentity(path: string) {
  const stat = await orIfNotFound(Deno.lstat(path));
  return stat?.isFile ? toFileIdentity(stat) : undefined;
}

export function toFileIdentity(stat: Deno.FileInfo): FileIdentity {
  return {
    size: stat.size,
    mtime: stat.mtime?.getTime() ?? null,
    ctime: stat.ctime?.getTime() ?? null,
    inode: stat.ino,
  };
}

/** Whether a file is unchanged; `true` if it is missing both times. */
export function isSameFileIdentity(
  now: FileIdentity | undefined,
  before: FileIdentity | undefined,
): boolean {
  return IDENTITY_FIELDS.every((field) => now?.[field] === before?.[field]);
}

/**
 * Identifies a version of a program or firmware file. An upgrade changes the
 * modification time; the same package has the same time on another host.
 */
export async function readSizeAndMtime(path: string) {
  const { size, mtime } = await readFileIdentity(path) ?? {};
  return { path, size, mtime };
}

/** Bytes that a file occupies on the disk: less than its size if it is sparse. */
export function allocatedBytes({ size, blocks }: Deno.FileInfo): number {
  // st_blocks counts 512-byte units on every filesystem.
  return Math.min(size, (blocks ?? Infinity) * 512);
}

/** Calls fsync on a file or directory; skips directories on Windows. */
export async function syncToDisk(path: string): Promise<void> {
  const { isDirectory } = await Deno.stat(path);
  if (isDirectory && Deno.build.os === "windows") return;
  using file = await Deno.open(path, { read: true, write: !isDirectory });
  await file.sync();
}

/**
 * Writes a file atomically: writes and syncs a temporary file with a random name in
 * `tempDir`, then renames it. Replaces a symbolic link instead of following it.
 */
export async function replaceFileAtomically(
  path: string,
  text: string,
  { mode = 0o644, ignoreUmask = false, tempDir = dirname(path) } = {},
): Promise<void> {
  const temporary = join(tempDir, `.${crypto.randomUUID()}.new`);
  const flags = { write: true, createNew: true, mode };
  const file = await Deno.open(temporary, flags);
  try {
    {
      using _open = file;
      await writeAll(file, new TextEncoder().encode(text));
      await file.sync();
    }
    if (ignoreUmask && Deno.build.os !== "windows") {
      await Deno.chmod(temporary, mode);
    }
    await Deno.rename(temporary, path);
  } catch (error) {
    await Deno.remove(temporary).catch(() => {});
    throw error;
  }
}

/**
 * Reads a regular text file; `undefined` if it is missing, larger than `maxBytes`,
 * a symbolic link or a special file.
 */
async function readSmallTextFile(path: string, maxBytes: number) {
  const stat = await orIfNotFound(Deno.lstat(path));
  if (!stat?.isFile || stat.size > maxBytes) return undefined;
  return await orIfNotFound(Deno.readTextFile(path));
}

/**
 * Reads a JSON object as {@linkcode readSmallTextFile} reads text; returns
 * `undefined` on any read or syntax error and for other JSON values.
 */
export async function readSmallJsonObject(path: string, maxBytes: number) {
  try {
    const text = await readSmallTextFile(path, maxBytes);
    const value: unknown = JSON.parse(text ?? "");
    return isJsonObject(value) ? value : undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return undefined;
  }
}

/**
 * Reads what {@linkcode readSmallTextFile} reads, with the file's inode and time of last
 * change, so that a copied, extracted or cloned file gives a different result.
 */
export async function readTextWithFileIdentity(
  path: string,
  maxBytes: number,
): Promise<string | undefined> {
  const text = await readSmallTextFile(path, maxBytes);
  const file = await readFileIdentity(path);
  return text && file && `${text} ${file.inode} ${file.ctime}`;
}

/** Reads bytes at an offset: fewer than `length` at the end of the file. */
export async function readFileAt(
  file: Deno.FsFile,
  offset: number,
  length: number,
): Promise<DataView> {
  // An entry may hold an offset beyond any file system's limit: seek would fail.
  if (offset >= (await file.stat()).size) {
    return new DataView(new ArrayBuffer());
  }
  await file.seek(offset, Deno.SeekMode.Start);
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const count = await file.read(bytes.subarray(done));
    if (count === null) break;
    done += count;
  }
  return new DataView(bytes.buffer, 0, done);
}

/**
 * Creates a temporary directory with a random name, by default in the system's
 * directory. An error names the variable to set.
 */
export async function makeTemporaryDir(prefix: string, parent?: string) {
  return await Deno.makeTempDir({ dir: parent, prefix }).catch((cause) => {
    const variable = Deno.build.os === "windows" ? "TEMP" : "TMPDIR";
    const where = parent === undefined ? "" : ` in ${parent}`;
    const error = systemError(cause, {
      code: "usage",
      messagePrefix: `Cannot create a temporary directory${where}`,
      hint: `set ${variable} to a directory that exists and is writable`,
    });
    if (!(error instanceof ToolsmithError && error.code === "disk_full")) {
      throw error;
    }
    const hint =
      `free some space, or set ${variable} to a directory with more free space`;
    throw new ToolsmithError("disk_full", error.message, { hint, cause });
  });
}

/** Removes a directory and all in it, or a file; a missing one is no error. */
export async function removeTree(path: string): Promise<void> {
  for (let attempt = 1;; attempt++) {
    try {
      return await orIfNotFound(Deno.remove(path, { recursive: true }));
    } catch (error) {
      // The oras of a killed process may add files, or another process a lock file.
      const isFilledAgain = (error as { code?: string }).code === "ENOTEMPTY";
      if (!isFilledAgain || attempt === MAX_REMOVE_ATTEMPTS) throw error;
    }
  }
}

/** Lists the sorted names in a directory; empty if the directory is missing. */
export async function listNamesInDir(dir: string): Promise<string[]> {
  const entries = await orIfNotFound(Array.fromAsync(Deno.readDir(dir)));
  return (entries ?? []).map(({ name }) => name).sort();
}

export function orIfNotFound<T>(work: Promise<T>): Promise<T | undefined> {
  return orIfError(work, Deno.errors.NotFound);
}

/** Also returns `undefined` if a part of the path is not a directory. */
export function orIfMissing<T>(work: Promise<T>): Promise<T | undefined> {
  return orIfError(work, Deno.errors.NotFound, Deno.errors.NotADirectory);
}

export function orIfDenied<T>(work: Promise<T>): Promise<T | undefined> {
  return orIfError(work, Deno.errors.PermissionDenied);
}

export function orIfError<T>(
  work: Promise<T>,
  ...kinds: (new (...args: never[]) => Error)[]
): Promise<T | undefined> {
  return work.catch((error) => {
    if (!kinds.some((kind) => error instanceof kind)) throw error;
    return undefined;
  });
}
