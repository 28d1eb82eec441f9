/**
 * Unpacks a tar archive that may be hostile: nothing of it gets out of its
 * directory, is written through a link, or is more than a file, a directory or a
 * link that stays inside.
 *
 * Formats: POSIX.1-2017, `pax`, "ustar Interchange Format" and "pax Interchange
 * Format"; GNU tar's manual, "Basic Tar Format", for its long names.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { dirname, join } from "../path.ts";
import { type ByteReader, byteReader } from "./_byte_reader.ts";
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

/** An entry, as its headers describe it. */
interface Entry {
  name: string;
  target: string;
  type: string;
  mode: number;
  mtime: number;
  size: number;
}

/** What headers before an entry say of it. */
type Said = Partial<Record<"path" | "linkpath" | "size" | "mtime", string>>;

const BLOCK = 512;
const MAX_SAID = 64 * 1024;
const FILES = ["0", "\0", "7"];

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
  const links: Entry[] = [];
  const dirs: Entry[] = [];
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

/** The entries; what its consumer leaves of a file's bytes is passed over. */
async function* entriesOf(reader: ByteReader): AsyncGenerator<Entry> {
  let said: Said = {};
  while (true) {
    const header = await reader.exactly(BLOCK);
    if (!header) throw malformed("it is cut off");
    if (header.every((byte) => byte === 0)) {
      await reader.drain();
      return;
    }
    const entry = readHeader(header);
    const padding = (BLOCK - entry.size % BLOCK) % BLOCK;
    if ("xLK".includes(entry.type)) {
      if (entry.size > MAX_SAID) throw malformed("a name is too long");
      const bytes = await reader.exactly(entry.size + padding);
      if (!bytes) throw malformed("it is cut off");
      said = {
        ...said,
        ...readSaid(entry.type, bytes.subarray(0, entry.size)),
      };
      continue;
    }
    const whole = { ...entry, ...applied(entry, said) };
    const rest = (BLOCK - whole.size % BLOCK) % BLOCK;
    const until = reader.position + whole.size + rest;
    said = {};
    // One that holds for all entries says nothing that matters here.
    if (whole.type !== "g") yield whole;
    if (!await reader.skip(until - reader.position)) {
      throw malformed("it is cut off");
    }
  }
}

function applied(entry: Entry, said: Said): Partial<Entry> {
  const { path, linkpath, size, mtime } = said;
  return {
    ...path === undefined ? {} : { name: path },
    ...linkpath === undefined ? {} : { target: linkpath },
    ...size === undefined ? {} : { size: asSize(Number(size)) },
    ...mtime === undefined ? {} : { mtime: Number(mtime) || entry.mtime },
  };
}

function readHeader(block: Uint8Array): Entry {
  const text = (at: number, length: number) => {
    const field = block.subarray(at, at + length);
    const end = field.indexOf(0);
    return decode(end < 0 ? field : field.subarray(0, end));
  };
  const number = (at: number, length: number) => {
    const digits = text(at, length).trim();
    return /^[0-7]*$/.test(digits) ? parseInt(digits || "0", 8) : NaN;
  };
  const sum = block.reduce(
    (sum, byte, at) => sum + (at >= 148 && at < 156 ? 32 : byte),
    0,
  );
  if (number(148, 8) !== sum) throw malformed("a checksum is wrong");
  const prefix = text(257, 6) === "ustar" ? text(345, 155) : "";
  const type = String.fromCharCode(block[156]);
  const hasBytes = [...FILES, ..."xLKg"].includes(type);
  return {
    name: prefix ? `${prefix}/${text(0, 100)}` : text(0, 100),
    target: text(157, 100),
    type,
    mode: number(100, 8) & 0o777,
    mtime: number(136, 12) || 0,
    size: hasBytes ? asSize(number(124, 12)) : 0,
  };
}

function asSize(size: number): number {
  if (Number.isSafeInteger(size) && size >= 0) return size;
  throw malformed("a size is wrong");
}

function readSaid(type: string, bytes: Uint8Array): Said {
  if (type !== "x") {
    const text = decode(bytes).replace(/\0.*$/s, "");
    return type === "L" ? { path: text } : { linkpath: text };
  }
  const said: Said = {};
  for (let at = 0; at < bytes.length;) {
    const space = bytes.indexOf(32, at);
    const length = Number(decode(bytes.subarray(at, space)));
    if (space < 0 || !(length > space - at) || at + length > bytes.length) {
      throw malformed("an extended header is wrong");
    }
    const [, key, value] = /^([^=]*)=(.*)\n$/s
      .exec(decode(bytes.subarray(space + 1, at + length))) ?? [];
    if (["path", "linkpath", "size", "mtime"].includes(key)) {
      said[key as keyof Said] = value;
    }
    at += length;
  }
  return said;
}

/** What is not UTF-8 gets a character that no name is written with. */
function decode(bytes: Uint8Array): string {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
}

/** Writes a file or a directory, unless it must not be there. */
async function takes(
  dir: string,
  entry: Entry,
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
  { target }: Entry,
): Promise<boolean> {
  const source = await placeOf(dir, target);
  if (source === undefined || source === place) return false;
  if (!(await found(source))?.isFile || !await makeWay(place)) return false;
  await Deno.link(source, place);
  return true;
}

async function makeLink(
  dir: string,
  { name, target }: Entry,
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

function malformed(why: string): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `What the guest exports is no tar archive: ${why}`,
    { hint: "it needs a tar that writes the usual format" },
  );
}

function beyond(limit: string): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `The guest exports more than ${limit}`,
    { hint: "export less: a guest whose kernel has 9p has no such limit" },
  );
}
