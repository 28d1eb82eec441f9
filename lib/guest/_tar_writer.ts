/**
 * Writes a directory as a tar archive: directories, files and symbolic links,
 * with their modes and times.
 *
 * Format: POSIX.1-2017, `pax`, "ustar Interchange Format" and "pax Interchange
 * Format" (extended headers for names that do not fit).
 */
import { join } from "../path.ts";
import { listNamesInDir, orIfDenied, orIfNotFound } from "../system/files.ts";
import {
  roundUpToTarBlock,
  TAR_BLOCK_BYTES,
  type TarHeader,
} from "./_tar_reader.ts";

export type TarPlan = Awaited<ReturnType<typeof planTar>>;

export interface PlanTarOptions {
  /** Absolute paths that are left out and not reported. @default {[]} */
  exclude?: string[];
  /** Stops planning once the archive is larger, in bytes. @default {Infinity} */
  maxBytes?: number;
  signal?: AbortSignal;
}

interface PlannedEntry extends TarHeader {
  path: string;
  /** Device and inode; a file opened later must match. */
  identity: string;
}

const CHUNK_BYTES = 64 * 1024;
const USTAR_NAME_PATTERN = /^[\x20-\x7e]{0,100}$/;
/** The largest value of eleven octal digits. */
const MAX_OCTAL_FIELD_VALUE = 8 ** 11 - 1;
const [FILE, DIRECTORY, LINK, PAX] = ["0", "5", "2", "x"];

export async function planTar(dir: string, options: PlanTarOptions = {}) {
  const { exclude = [], maxBytes = Infinity, signal } = options;
  const skipped: string[] = [];
  const entries: PlannedEntry[] = [];
  let bytes = 2 * TAR_BLOCK_BYTES;
  const dirs = [""];
  while (dirs.length > 0 && bytes <= maxBytes) {
    const parent = dirs.pop()!;
    // Sorted, so that equal directories give equal archives.
    const names = await orIfDenied(listNamesInDir(join(dir, parent)));
    if (!names) skipped.push(parent || ".");
    for (const name of names ?? []) {
      const inside = parent ? `${parent}/${name}` : name;
      const path = join(dir, inside);
      if (exclude.includes(path)) continue;
      const entry = await planEntry(path, inside);
      if (!entry) {
        skipped.push(inside);
        continue;
      }
      entries.push(entry);
      bytes += entryHeaders(entry).length + roundUpToTarBlock(entry.size);
      if (entry.typeFlag === DIRECTORY) dirs.push(inside);
      if (bytes > maxBytes) break;
    }
    signal?.throwIfAborted();
  }
  return {
    archiveBytes: bytes,
    entryCount: entries.length,
    /**
     * Pipes, sockets, devices, names that are not UTF-8, and files that this user
     * cannot read.
     */
    skippedPaths: skipped,
    /** Reads the files and yields the archive; each file keeps its planned size. */
    archiveChunks: () => readArchiveChunks(entries, signal),
  };
}

/** `undefined` for other file types, and what cannot be read. */
async function planEntry(path: string, name: string) {
  const stat = await orIfDenied(orIfNotFound(Deno.lstat(path)));
  if (!stat) return undefined;
  const { isFile, isDirectory, isSymlink, mtime } = stat;
  if (!isFile && !isDirectory && !isSymlink) return undefined;
  const seconds = Math.floor((mtime?.getTime() ?? 0) / 1000);
  const entry: PlannedEntry = {
    name: isDirectory ? `${name}/` : name,
    path,
    typeFlag: isFile ? FILE : isDirectory ? DIRECTORY : LINK,
    mode: (stat.mode ?? (isDirectory ? 0o755 : 0o644)) & 0o1777,
    mtime: Math.min(Math.max(0, seconds), MAX_OCTAL_FIELD_VALUE),
    size: isFile ? stat.size : 0,
    linkTarget: isSymlink ? await Deno.readLink(path).catch(() => "") : "",
    identity: fileIdentity(stat),
  };
  if (!isFile) return entry;
  using file = await orIfDenied(openIfSameFile(entry));
  return file && entry;
}

function fileIdentity({ dev, ino }: Deno.FileInfo): string {
  return `${dev} ${ino}`;
}

/** Opens a planned file, unless another file has replaced it. */
async function openIfSameFile({ path, identity }: PlannedEntry) {
  const file = await orIfNotFound(Deno.open(path));
  if (file && fileIdentity(await file.stat()) === identity) return file;
  file?.close();
}

async function* readArchiveChunks(
  entries: PlannedEntry[],
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  // Combine small entries: each chunk costs its reader a message.
  let pending: Uint8Array<ArrayBuffer>[] = [];
  let count = 0;
  for (const entry of entries) {
    for await (const part of entryChunks(entry)) {
      pending.push(part);
      count += part.length;
      if (count < CHUNK_BYTES) continue;
      yield await new Blob(pending).bytes();
      pending = [];
      count = 0;
      signal?.throwIfAborted();
    }
  }
  pending.push(new Uint8Array(2 * TAR_BLOCK_BYTES));
  yield await new Blob(pending).bytes();
}

async function* entryChunks(entry: PlannedEntry) {
  yield entryHeaders(entry);
  if (entry.size === 0) return;
  let left = entry.size;
  using file = await openIfSameFile(entry);
  while (left > 0) {
    const buffer = new Uint8Array(Math.min(left, CHUNK_BYTES));
    // Zeros stand for a file that has shrunk or was replaced.
    const count = await file?.read(buffer) ?? buffer.length;
    left -= count;
    yield buffer.subarray(0, count);
  }
  yield new Uint8Array(roundUpToTarBlock(entry.size) - entry.size);
}

/** The ustar header, after a pax header for values that do not fit. */
function entryHeaders(entry: PlannedEntry): Uint8Array<ArrayBuffer> {
  const { size, mtime } = entry;
  let records = "";
  const shortened = (key: string, text: string) => {
    if (USTAR_NAME_PATTERN.test(text)) return text;
    records += paxRecord(key, text);
    return "long";
  };
  const plain = ustarHeader({
    ...entry,
    name: shortened("path", entry.name),
    linkTarget: shortened("linkpath", entry.linkTarget),
    size: Math.min(size, MAX_OCTAL_FIELD_VALUE),
  });
  if (size > MAX_OCTAL_FIELD_VALUE) records += paxRecord("size", `${size}`);
  if (records === "") return plain;
  const bytes = encodeUtf8(records);
  const body = new Uint8Array(roundUpToTarBlock(bytes.length));
  body.set(bytes);
  const about = { name: "pax", linkTarget: "", typeFlag: PAX, mode: 0o644 };
  const pax = ustarHeader({ ...about, mtime, size: bytes.length });
  return new Uint8Array([...pax, ...body, ...plain]);
}

/** A pax record starts with its length in bytes, including that number. */
function paxRecord(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`;
  const bytes = encodeUtf8(rest).length;
  let length = bytes + `${bytes}`.length;
  if (`${length}`.length > `${bytes}`.length) length++;
  return `${length}${rest}`;
}

function encodeUtf8(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

function ustarHeader(fields: TarHeader): Uint8Array<ArrayBuffer> {
  const block = new Uint8Array(TAR_BLOCK_BYTES);
  const put = (text: string, at: number) => block.set(encodeUtf8(text), at);
  const octal = (value: number, digits: number) =>
    value.toString(8).padStart(digits, "0");
  put(fields.name, 0);
  put(octal(fields.mode, 7), 100);
  put(octal(0, 7), 108); // owner and group: root in the guest
  put(octal(0, 7), 116);
  put(octal(fields.size, 11), 124);
  put(octal(fields.mtime, 11), 136);
  put(" ".repeat(8), 148);
  put(fields.typeFlag, 156);
  put(fields.linkTarget, 157);
  put("ustar\x0000", 257);
  const sum = block.reduce((sum, byte) => sum + byte, 0);
  put(`${octal(sum, 6)}\0 `, 148);
  return block;
}
