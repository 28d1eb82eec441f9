/**
 * Unpacks a tar archive that may be hostile: nothing of it gets out of its
 * directory, is written through a link, or is more than a file, a directory or a
 * link that stays inside.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { dirname, join } from "../path.ts";
import { type ByteReader, byteReader } from "./_byte_reader.ts";
import { entriesOf, FILES, type TarEntry } from "./_tar_entries.ts";
import { writeAll } from "./streams.ts";

/** What {@linkcode unpackTar} takes. */
export interface UnpackOptions {
  /** How many bytes all files may have. */
  maxBytes: number;
  /** How many entries there may be. */
  maxEntries: number;
}

/** What {@linkcode unpackTar} did. */
export interface Unpacked {
  /** How many entries it wrote. */
  entries: number;
  /** Names of those that it did not take. */
  refused: string[];
}

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
 * limit; what came before stays.
 */
export async function unpackTar(
  chunks: AsyncIterable<Uint8Array>,
  dir: string,
  options: UnpackOptions,
): Promise<Unpacked> {
  const reader = byteReader(chunks);
  const done: Unpacked = { entries: 0, refused: [] };
  const links: TarEntry[] = [];
  const dirs: TarEntry[] = [];
  let bytes = 0;
  let count = 0;
  for await (const entry of entriesOf(reader)) {
    bytes += entry.size;
    if (++count > options.maxEntries) {
      throw beyond(`${options.maxEntries} entries`);
    }
    if (bytes > options.maxBytes) throw beyond(`${options.maxBytes} bytes`);
    if (entry.type === "2") links.push(entry);
    else if (await takes(dir, entry, reader)) {
      // The export itself keeps the mode that its owner gave it.
      if (entry.type === "5" && partsOf(entry.name).length > 0) {
        dirs.push(entry);
      }
      done.entries++;
    } else done.refused.push(entry.name);
  }
  // Last, so that nothing is written through them.
  for (const link of links) {
    if (await makeLink(dir, link)) done.entries++;
    else done.refused.push(link.name);
  }
  // Also last: one that is read-only, or old, was to be filled before.
  for (const { name, mode } of dirs.reverse()) {
    await Deno.chmod(join(dir, name), mode | 0o700);
  }
  return done;
}

/** Writes a file or a directory, unless it must not be there. */
async function takes(
  dir: string,
  entry: TarEntry,
  reader: ByteReader,
): Promise<boolean> {
  const place = await placeOf(dir, entry.name);
  if (place === undefined) return false;
  if (entry.type === "5") return await makeDirectory(place);
  if (entry.type === "1") return await makeHardLink(dir, place, entry);
  if (!FILES.includes(entry.type) || !await makeWay(place)) return false;
  {
    using file = await Deno.open(place, {
      write: true,
      createNew: true,
      mode: 0o600,
    });
    for await (const chunk of reader.take(entry.size)) {
      await writeAll(file, chunk);
    }
  }
  await Deno.chmod(place, entry.mode);
  await Deno.utime(place, entry.mtime, entry.mtime);
  return true;
}

/**
 * Where an entry is to be, with all directories above it.
 *
 * @returns `undefined` for a name that leads out, or through a link.
 */
async function placeOf(
  dir: string,
  name: string,
): Promise<string | undefined> {
  const parts = partsOf(name);
  const bad = name.startsWith("/") || name.includes("\ufffd") ||
    name.includes("\0") ||
    parts.some((part) =>
      part === ".." || new TextEncoder().encode(part).length > 255
    );
  if (bad || name.length > 4000) return undefined;
  let place = dir;
  for (const part of parts.slice(0, -1)) {
    place = join(place, part);
    if (!await makeDirectory(place)) return undefined;
  }
  return parts.length === 0 ? dir : join(place, parts.at(-1)!);
}

function partsOf(name: string): string[] {
  return name.split("/").filter((part) => part !== "" && part !== ".");
}

async function makeDirectory(path: string): Promise<boolean> {
  const there = await found(path);
  if (!there) await Deno.mkdir(path, { mode: 0o755 });
  return !there || there.isDirectory;
}

/** Removes a file or a link that is in the place; a directory stays. */
async function makeWay(path: string): Promise<boolean> {
  const there = await found(path);
  if (there?.isDirectory) return false;
  if (there) await Deno.remove(path);
  return true;
}

async function makeHardLink(
  dir: string,
  place: string,
  { target }: TarEntry,
): Promise<boolean> {
  const source = await placeOf(dir, target);
  if (source === undefined || source === place) return false;
  if (!(await found(source))?.isFile || !await makeWay(place)) return false;
  await Deno.link(source, place);
  return true;
}

async function makeLink(
  dir: string,
  { name, target }: TarEntry,
): Promise<boolean> {
  const place = await placeOf(dir, name);
  if (place === undefined || place === dir) return false;
  const depth = dirname(place).slice(dir.length).split("/").length - 1;
  if (!staysInside(target, depth) || !await makeWay(place)) return false;
  await Deno.symlink(target, place);
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
  return target !== "" && !target.startsWith("/") &&
    !/[\0\ufffd]/.test(target) &&
    ups <= depth && !parts.slice(ups).includes("..");
}

async function found(path: string): Promise<Deno.FileInfo | undefined> {
  try {
    return await Deno.lstat(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

function beyond(limit: string): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `The guest exports more than ${limit}`,
    { hint: "export less: a guest whose kernel has 9p has no such limit" },
  );
}
