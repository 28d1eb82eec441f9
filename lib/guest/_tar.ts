/**
 * Writes a directory as a tar archive: directories, files and symbolic links,
 * with their modes and times.
 *
 * Format: POSIX.1-2017, `pax`, "ustar Interchange Format" and "pax Interchange
 * Format" (extended headers for names that do not fit).
 *
 * @module
 */
import { join } from "../path.ts";
import { absentAs } from "../system/files.ts";

/** A directory, as it is to be written. */
export interface TarPlan {
  /** Size of the archive, in bytes. */
  bytes: number;
  /** How many entries it has. */
  entries: number;
  /**
   * Paths of what is left out: pipes, sockets, devices, names that are no UTF-8,
   * and what this user may not read.
   */
  skipped: string[];
  /** The archive; files that change meanwhile keep the size that they had. */
  chunks(): AsyncGenerator<Uint8Array<ArrayBuffer>>;
}

/** What {@linkcode planTar} takes. */
export interface TarOptions {
  /** Absolute paths that are left out, without a word. @default {[]} */
  exclude?: string[];
  /** Stops to look once the archive has more bytes. @default {Infinity} */
  limit?: number;
  /** Ends the work when aborted. */
  signal?: AbortSignal;
}

interface Entry {
  /** Its path in the archive. */
  name: string;
  /** Its path on this host. */
  path: string;
  type: "file" | "directory" | "link";
  mode: number;
  /** Seconds since 1970. */
  mtime: number;
  size: number;
  /** What a link says. */
  target: string;
  /** What was looked at: what is opened later must be the same. */
  identity: string;
}

const BLOCK = 512;
const CHUNK = 64 * 1024;
const NAME_BYTES = 100;
/** The largest number of eleven octal digits. */
const MAX_NUMBER = 8 ** 11 - 1;
const TYPES = { file: "0", directory: "5", link: "2" } as const;
const PAX = "x";

/**
 * Looks at all that is in a directory.
 *
 * Needs `--allow-read` for it.
 *
 * @param dir The directory.
 * @param options What to leave out, and when to stop.
 * @returns What an archive of it would be.
 * @throws The signal's reason when it is aborted.
 */
export async function planTar(
  dir: string,
  options: TarOptions = {},
): Promise<TarPlan> {
  const { exclude = [], limit = Infinity, signal } = options;
  const skipped: string[] = [];
  const entries: Entry[] = [];
  let bytes = 2 * BLOCK;
  const dirs = [""];
  while (dirs.length > 0 && bytes <= limit) {
    const parent = dirs.pop()!;
    const inParent = await unlessDenied(names(join(dir, parent)));
    if (!inParent) skipped.push(parent || ".");
    for (const name of inParent ?? []) {
      const inside = parent ? `${parent}/${name}` : name;
      const path = join(dir, inside);
      if (exclude.includes(path)) continue;
      const entry = await look(path, inside);
      if (!entry) {
        skipped.push(inside);
        continue;
      }
      entries.push(entry);
      bytes += headers(entry).length + padded(entry.size);
      if (entry.type === "directory") dirs.push(inside);
      if (bytes > limit) break;
    }
    signal?.throwIfAborted();
  }
  return {
    bytes,
    entries: entries.length,
    skipped,
    chunks: () => write(entries, signal),
  };
}

/** In an order of their own, so that two archives of the same are the same. */
async function names(dir: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { name } of Deno.readDir(dir)) found.push(name);
  return found.sort();
}

/** What this user may not read, or is gone meanwhile, is nothing. */
async function unlessDenied<T>(found: Promise<T>): Promise<T | undefined> {
  try {
    return await found;
  } catch (error) {
    if (
      error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.PermissionDenied
    ) return undefined;
    throw error;
  }
}

/** What is neither of the three kinds, or cannot be named or read, is nothing. */
async function look(path: string, name: string): Promise<Entry | undefined> {
  const stat = await unlessDenied(Deno.lstat(path));
  if (!stat) return undefined;
  const { isFile, isDirectory, isSymlink, mtime } = stat;
  if (!isFile && !isDirectory && !isSymlink) return undefined;
  const seconds = Math.floor((mtime?.getTime() ?? 0) / 1000);
  const entry: Entry = {
    name: isDirectory ? `${name}/` : name,
    path,
    type: isFile ? "file" : isDirectory ? "directory" : "link",
    mode: (stat.mode ?? (isDirectory ? 0o755 : 0o644)) & 0o1777,
    mtime: Math.min(Math.max(0, seconds), MAX_NUMBER),
    size: isFile ? stat.size : 0,
    target: isSymlink ? await Deno.readLink(path).catch(() => "") : "",
    identity: identityOf(stat),
  };
  if (!isFile) return entry;
  using file = await unlessDenied(openSame(entry));
  return file && entry;
}

function identityOf({ dev, ino }: Deno.FileInfo): string {
  return `${dev} ${ino}`;
}

/** Opens a file that was looked at; not what a link in its place leads to. */
async function openSame({ path, identity }: Entry) {
  const file = await absentAs(undefined, Deno.open(path));
  if (file && identityOf(await file.stat()) === identity) return file;
  file?.close();
}

async function* write(
  entries: Entry[],
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  // Small entries go together: each chunk is a message to whoever reads.
  let pending: Uint8Array<ArrayBuffer>[] = [];
  let count = 0;
  for (const entry of entries) {
    for await (const part of entryParts(entry)) {
      pending.push(part);
      count += part.length;
      if (count < CHUNK) continue;
      yield joined(pending);
      pending = [];
      count = 0;
      signal?.throwIfAborted();
    }
  }
  yield joined([...pending, new Uint8Array(2 * BLOCK)]);
}

function joined(parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(parts.reduce((sum, it) => sum + it.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

async function* entryParts(
  entry: Entry,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  yield headers(entry);
  if (entry.size === 0) return;
  let left = entry.size;
  using file = await openSame(entry);
  while (file && left > 0) {
    const buffer = new Uint8Array(Math.min(left, CHUNK));
    const read = await file.read(buffer);
    if (read === null) break;
    left -= read;
    yield buffer.subarray(0, read);
  }
  // A file that has become shorter, or another, is filled up.
  for (; left > 0; left -= Math.min(left, CHUNK)) {
    yield new Uint8Array(Math.min(left, CHUNK));
  }
  yield new Uint8Array(padded(entry.size) - entry.size);
}

function padded(size: number): number {
  return Math.ceil(size / BLOCK) * BLOCK;
}

/** The header of an entry, behind one for what does not fit into it. */
function headers(entry: Entry): Uint8Array<ArrayBuffer> {
  const { name, target, size, mode, mtime, type } = entry;
  const records = [
    ...fits(name) ? [] : [["path", name]],
    ...fits(target) ? [] : [["linkpath", target]],
    ...size <= MAX_NUMBER ? [] : [["size", `${size}`]],
  ];
  const plain = header({
    name: fits(name) ? name : "long",
    target: fits(target) ? target : "long",
    size: Math.min(size, MAX_NUMBER),
    type: TYPES[type],
    mode,
    mtime,
  });
  if (records.length === 0) return plain;
  const text = encode(
    records.map(([key, value]) => record(key, value)).join(""),
  );
  const body = new Uint8Array(padded(text.length));
  body.set(text);
  const extended = header({
    name: "pax",
    target: "",
    size: text.length,
    type: PAX,
    mode: 0o644,
    mtime,
  });
  return joined([extended, body, plain]);
}

function fits(text: string): boolean {
  return text.length <= NAME_BYTES && /^[\x20-\x7e]*$/.test(text);
}

/** A record begins with its own length in bytes, that number included. */
function record(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`;
  const bytes = encode(rest).length;
  let length = bytes + `${bytes}`.length;
  if (`${length}`.length > `${bytes}`.length) length++;
  return `${length}${rest}`;
}

function encode(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

function header(fields: {
  name: string;
  target: string;
  size: number;
  type: string;
  mode: number;
  mtime: number;
}): Uint8Array<ArrayBuffer> {
  const block = new Uint8Array(BLOCK);
  const put = (text: string, at: number) => block.set(encode(text), at);
  const octal = (value: number, digits: number) =>
    value.toString(8).padStart(digits, "0");
  put(fields.name, 0);
  put(octal(fields.mode, 7), 100);
  put(octal(0, 7), 108); // the owner: in the guest that is root
  put(octal(0, 7), 116);
  put(octal(fields.size, 11), 124);
  put(octal(fields.mtime, 11), 136);
  put(" ".repeat(8), 148);
  put(fields.type, 156);
  put(fields.target, 157);
  put("ustar\x0000", 257);
  const sum = block.reduce((sum, byte) => sum + byte, 0);
  put(`${octal(sum, 6)}\0 `, 148);
  return block;
}
