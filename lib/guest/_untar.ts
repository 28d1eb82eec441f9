/**
 * Unpacks a tar archive that may be hostile: nothing of it gets out of its
 * directory, is written through a link, or is more than a file, a directory or a
 * link that stays inside.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { join } from "../path.ts";
import { absentAs } from "../system/files.ts";
import { isPortableName } from "../system/portable_name.ts";
import { writeAll } from "../system/streams.ts";
import { type ByteReader, byteReader } from "./_byte_reader.ts";
import { entriesOf, FILES, type TarEntry } from "./_tar_entries.ts";

/** What {@linkcode unpackTar} takes. */
export interface UnpackOptions {
  /** How many bytes all files may have. */
  maxBytes: number;
  /** How many entries there may be, with the directories that they imply. */
  maxEntries: number;
  /** Ends the work between two entries when aborted. */
  signal?: AbortSignal;
}

/** What {@linkcode unpackTar} did. */
export interface Unpacked {
  /** How many entries it wrote. */
  entries: number;
  /** What it did not take. */
  refused: LeftOut;
}

/** What is not in a copy. */
export interface LeftOut {
  /** How many entries. */
  count: number;
  /** The names of the first. */
  names: string[];
}

/** Room that the headers of one entry take at most, with two long names. */
const ENTRY_BYTES = 32 * 1024;
/** Links and directories are kept in memory until the end. */
const MAX_KEPT_BYTES = 64 * 1024 * 1024;
const NAMES_SHOWN = 20;
const MAX_DEPTH = 128;
/** Of a path, on all systems that matter here. */
const MAX_PATH_BYTES = 4095;
const MAX_NAME_BYTES = 255;

/**
 * Unpacks an archive.
 *
 * Needs `--allow-read` and `--allow-write` for the directory.
 *
 * @param chunks The archive.
 * @param dir A directory that nobody else writes to meanwhile. What is there is
 * replaced by files of the same name, but a directory by nothing else.
 * @param options Limits.
 * @returns What was written, and what was not.
 * @throws {ToolsmithError} `guest_failed` for what is no archive, or beyond a
 * limit; what came before stays, and the archive is not read on.
 */
export async function unpackTar(
  chunks: AsyncIterable<Uint8Array>,
  dir: string,
  { maxBytes, maxEntries, signal }: UnpackOptions,
): Promise<Unpacked> {
  // Headers that say nothing, and what follows the end, count as well.
  const most = maxBytes + maxEntries * ENTRY_BYTES;
  const reader = byteReader(chunks, (count) => {
    if (count > most) throw beyond(`${most} bytes`);
  });
  let made = 0;
  const place: Place = {
    dir,
    entered: new Set([dir]),
    make() {
      if (++made > maxEntries) throw beyond(`${maxEntries} entries`);
    },
  };
  const done: Unpacked = { entries: 0, refused: { count: 0, names: [] } };
  const note = (name: string, taken: boolean) => {
    const { refused } = done;
    if (taken) done.entries++;
    else if (refused.count++ < NAMES_SHOWN) refused.names.push(name);
  };
  const links: TarEntry[] = [];
  const dirs: TarEntry[] = [];
  let [bytes, kept] = [0, 0];
  try {
    for await (const entry of entriesOf(reader)) {
      const { type, name, target } = entry;
      signal?.throwIfAborted();
      place.make();
      bytes += entry.size;
      if (bytes > maxBytes) throw beyond(`${maxBytes} bytes`);
      if ("25".includes(type)) kept += name.length + target.length;
      if (kept > MAX_KEPT_BYTES) {
        throw beyond(`${MAX_KEPT_BYTES} bytes of names`);
      }
      if (type === "2") {
        links.push(entry);
        continue;
      }
      const taken = await takes(place, entry, reader);
      note(name, taken);
      // The export itself keeps the mode that its owner gave it.
      const inside = partsOf(name).length > 0;
      if (taken && type === "5" && inside) dirs.push(entry);
    }
  } finally {
    await reader.close();
  }
  // Last, so that nothing is written through them.
  for (const link of links) {
    signal?.throwIfAborted();
    note(link.name, await makeLink(place, link));
  }
  // Also last: one that is read-only, or old, was to be filled before.
  for (const { name, mode } of dirs.reverse()) {
    signal?.throwIfAborted();
    await Deno.chmod(join(dir, name), mode | 0o700);
  }
  return done;
}

/** Where an archive goes to. */
interface Place {
  dir: string;
  /** Directories that were gone into: nothing replaces them. */
  entered: Set<string>;
  /** Counts what is made. */
  make(): void;
}

/** Writes a file or a directory, unless it must not be there. */
async function takes(
  place: Place,
  entry: TarEntry,
  reader: ByteReader,
): Promise<boolean> {
  const { type, name, size, mode, mtime } = entry;
  if (![...FILES, "1", "5"].includes(type)) return false;
  const path = await pathOf(place, name, makeDirectory);
  if (path === undefined) return false;
  if (type === "5") return await makeDirectory(place, path);
  if (type === "1") return await makeHardLink(place, path, entry);
  if (!await makeWay(path)) return false;
  {
    using file = await Deno.open(path, {
      write: true,
      createNew: true,
      mode: 0o600,
    });
    for await (const chunk of reader.take(size)) await writeAll(file, chunk);
  }
  await Deno.chmod(path, mode);
  await Deno.utime(path, mtime, mtime);
  return true;
}

/**
 * Where an entry is to be.
 *
 * @param place The export.
 * @param name Its name.
 * @param enter Says whether a directory above it can be gone into.
 * @returns `undefined` for a name that leads out, or through a link.
 */
async function pathOf(
  place: Place,
  name: string,
  enter: (place: Place, path: string) => Promise<boolean>,
): Promise<string | undefined> {
  const parts = partsOf(name);
  const bad = name.startsWith("/") || parts.length > MAX_DEPTH ||
    !parts.every(isName) ||
    bytesOf(join(place.dir, ...parts)) > MAX_PATH_BYTES;
  if (bad) return undefined;
  const parent = join(place.dir, ...parts.slice(0, -1));
  if (!place.entered.has(parent)) {
    let path = place.dir;
    for (const part of parts.slice(0, -1)) {
      path = join(path, part);
      if (!await enter(place, path)) return undefined;
    }
    place.entered.add(parent);
  }
  return join(parent, ...parts.slice(-1));
}

function partsOf(name: string): string[] {
  return name.split("/").filter((part) => part !== "" && part !== ".");
}

/** Is this the name of something in a directory, here? */
function isName(part: string): boolean {
  if (Deno.build.os === "windows") return isPortableName(part);
  return part !== ".." && !/[\0\ufffd]/.test(part) &&
    bytesOf(part) <= MAX_NAME_BYTES;
}

function bytesOf(text: string): number {
  return new TextEncoder().encode(text).length;
}

async function makeDirectory(place: Place, path: string): Promise<boolean> {
  const there = await found(path);
  if (there) return there.isDirectory;
  place.make();
  await Deno.mkdir(path, { mode: 0o755 });
  return true;
}

/** Removes a file or a link that is in the place; a directory stays. */
async function makeWay(path: string): Promise<boolean> {
  const there = await found(path);
  if (there?.isDirectory) return false;
  if (there) await Deno.remove(path);
  return true;
}

async function makeHardLink(
  place: Place,
  path: string,
  { target }: TarEntry,
): Promise<boolean> {
  const isThere = async (_: Place, path: string) =>
    (await found(path))?.isDirectory ?? false;
  const source = await pathOf(place, target, isThere);
  if (source === undefined || source === path) return false;
  if (!(await found(source))?.isFile || !await makeWay(path)) return false;
  await Deno.link(source, path);
  return true;
}

async function makeLink(
  place: Place,
  { name, target }: TarEntry,
): Promise<boolean> {
  const depth = partsOf(name).length - 1;
  if (depth < 0 || !staysInside(target, depth)) return false;
  const path = await pathOf(place, name, makeDirectory);
  if (path === undefined || !await makeWay(path)) return false;
  await Deno.symlink(target, path);
  return true;
}

/**
 * A target may go up first, as far as the top, and down then: after a link that
 * it goes through, another way up would lead elsewhere.
 */
function staysInside(target: string, depth: number): boolean {
  const parts = partsOf(target);
  const up = parts.findIndex((part) => part !== "..");
  const ups = up < 0 ? parts.length : up;
  return target !== "" && !target.startsWith("/") && ups <= depth &&
    parts.slice(ups).every(isName) && bytesOf(target) <= MAX_PATH_BYTES;
}

function found(path: string): Promise<Deno.FileInfo | undefined> {
  return absentAs(undefined, Deno.lstat(path));
}

function beyond(limit: string): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `The guest exports more than ${limit}`,
    { hint: "export less: a guest whose kernel has 9p has no such limit" },
  );
}
