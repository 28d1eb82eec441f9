/**
 * Unpacks a tar archive that may be hostile: nothing is written outside the target
 * directory or through a link. Only regular files, directories and links that stay
 * inside are created.
 */
import { dirname, join } from "../path.ts";
import { orIfNotFound } from "../system/files.ts";
import {
  archiveReader,
  readTarEntries,
  REGULAR_FILE_TYPE_FLAGS,
  type TarEntry,
  type TarLimits,
} from "./_tar_reader.ts";

const CHUNK_BYTES = 64 * 1024;
const MAX_PATH_DEPTH = 128;
/** Limit for a path on all supported systems. */
const MAX_PATH_BYTES = 4095;
const MAX_FILE_NAME_BYTES = 255;

/**
 * Unpacks an archive that nobody else writes to meanwhile; a malformed one, or one
 * above the limits, leaves the directory unchanged. Files and links replace existing
 * ones of the same name, at once, and without following a link. Directories are merged:
 * a directory never replaces a file, nor a file a directory. Returns the names of the
 * entries that were not safe, and skipped.
 */
export async function unpackTar(
  archive: Deno.FsFile,
  dir: string,
  limits: TarLimits,
): Promise<string[]> {
  const read = archiveReader(archive);
  const entries = await readTarEntries(read, limits);
  const isSymlink = ({ typeFlag }: TarEntry) => Number(typeFlag === "2");
  // Symbolic links come last, so that no entry leads through them.
  const inOrder = entries.toSorted((a, b) => isSymlink(a) - isSymlink(b));
  const refused: string[] = [];
  for (const entry of inOrder) {
    limits.signal?.throwIfAborted();
    const isWritten = await writeEntryIfSafe(read, dir, entry);
    if (!isWritten) refused.push(entry.name);
  }
  return refused;
}

async function writeEntryIfSafe(
  read: ReturnType<typeof archiveReader>,
  dir: string,
  entry: TarEntry,
): Promise<boolean> {
  const { name, typeFlag, linkTarget, mode } = entry;
  const path = await safePath(dir, name);
  if (path === undefined) return false;
  if (typeFlag === "5") return await makeDirectory(path, mode);
  if (typeFlag === "2") {
    const depth = pathSegments(name).length - 1;
    return linkStaysInside(linkTarget, depth) &&
      await replaceFile(path, (fresh) => Deno.symlink(linkTarget, fresh));
  }
  if (typeFlag === "1") {
    const source = await safePath(dir, linkTarget);
    if (source === undefined || source === path) return false;
    return (await lstatIfFound(source))?.isFile === true &&
      await replaceFile(path, (fresh) => Deno.link(source, fresh));
  }
  return REGULAR_FILE_TYPE_FLAGS.includes(typeFlag) &&
    await replaceFile(path, (fresh) => extractFile(read, entry, fresh));
}

/** The owner keeps access, or the directory could not be filled. */
async function makeDirectory(path: string, mode: number): Promise<boolean> {
  const found = await lstatIfFound(path);
  if (!found) await Deno.mkdir(path, { mode: mode | 0o700 });
  return !found || found.isDirectory;
}

/** Creates a file under another name and renames it; `false` for a directory. */
async function replaceFile(
  path: string,
  create: (fresh: string) => Promise<void>,
): Promise<boolean> {
  if ((await lstatIfFound(path))?.isDirectory) return false;
  const fresh = join(dirname(path), `.${crypto.randomUUID()}.new`);
  try {
    await create(fresh);
    await Deno.rename(fresh, path);
  } finally {
    // Exists after an error, or if both are links to one file.
    await orIfNotFound(Deno.remove(fresh));
  }
  return true;
}

/** Changes mode and times of the open file: somebody could replace its name. */
async function extractFile(
  read: ReturnType<typeof archiveReader>,
  { offset, size, mode, mtime }: TarEntry,
  path: string,
): Promise<void> {
  // Imported lazily, as Node modules cost milliseconds at every start.
  const { open } = await import("node:fs/promises");
  const file = await open(path, "wx", 0o600);
  try {
    for (let at = 0; at < size; at += CHUNK_BYTES) {
      const length = Math.min(size - at, CHUNK_BYTES);
      await file.writeFile(await read(offset + at, length));
    }
    await file.chmod(mode);
    await file.utimes(mtime, mtime);
  } finally {
    await file.close();
  }
}

/**
 * Returns the path of an entry; `undefined` for a name that leads out of the
 * directory or through a link, or whose parent directory is missing.
 */
async function safePath(dir: string, name: string) {
  const parts = pathSegments(name);
  const path = join(dir, ...parts);
  const isSafe = !name.startsWith("/") && parts.length <= MAX_PATH_DEPTH &&
    parts.every(isSafeName) && utf8Length(path) <= MAX_PATH_BYTES;
  if (!isSafe) return undefined;
  let parent = dir;
  for (const part of parts.slice(0, -1)) {
    parent = join(parent, part);
    if (!(await lstatIfFound(parent))?.isDirectory) return undefined;
  }
  return path;
}

function lstatIfFound(path: string): Promise<Deno.FileInfo | undefined> {
  return orIfNotFound(Deno.lstat(path));
}

function pathSegments(name: string): string[] {
  return name.split("/").filter((part) => part !== "" && part !== ".");
}

function isSafeName(part: string): boolean {
  return part !== ".." && !/[\0\ufffd]/.test(part) &&
    utf8Length(part) <= MAX_FILE_NAME_BYTES;
}

function utf8Length(text: string): number {
  return new TextEncoder().encode(text).length;
}

/**
 * A target may first go up, at most to the top, and then down. A later `..` could
 * follow another link and lead outside.
 */
function linkStaysInside(target: string, depth: number): boolean {
  const parts = pathSegments(target);
  const up = parts.findIndex((part) => part !== "..");
  const ups = up < 0 ? parts.length : up;
  return target !== "" && !target.startsWith("/") && ups <= depth &&
    parts.slice(ups).every(isSafeName) && utf8Length(target) <= MAX_PATH_BYTES;
}
