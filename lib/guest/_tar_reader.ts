/**
 * Reads the entries of a tar archive that may be hostile.
 *
 * Formats: POSIX.1-2017, `pax`, "ustar Interchange Format" and "pax Interchange
 * Format"; GNU tar's manual, "Basic Tar Format", for its long names.
 */
import { ToolsmithError } from "../errors.ts";
import { readFileAt } from "../system/files.ts";

export interface TarHeader {
  /** Path; invalid UTF-8 becomes U+FFFD. */
  name: string;
  linkTarget: string;
  typeFlag: string;
  /** Permission bits, without set-ID bits. */
  mode: number;
  /** Seconds since 1970. */
  mtime: number;
  size: number;
}

export interface TarEntry extends TarHeader {
  /** Offset of the content in the archive, in bytes. */
  offset: number;
}

export interface TarLimits {
  /** Limit for the content of all files, in bytes. */
  maxBytes: number;
  maxEntries: number;
  signal?: AbortSignal;
}

export const TAR_BLOCK_BYTES = 512;
const BUFFER_BYTES = 64 * 1024;
const MAX_OVERRIDE_HEADER_BYTES = 8 * 1024;
/** Limit for the names and link targets of all entries, which are in memory. */
const MAX_NAME_CHARS = 64 * 1024 * 1024;
export const REGULAR_FILE_TYPE_FLAGS = ["0", "\0", "7"];

/** Reads all entries of an archive, which is complete and within the limits then. */
export async function readTarEntries(
  read: ReturnType<typeof archiveReader>,
  { maxBytes, maxEntries, signal }: TarLimits,
): Promise<TarEntry[]> {
  const entries: TarEntry[] = [];
  /** Values from pax and GNU headers that override the next ustar header. */
  let overrides: Partial<TarHeader> = {};
  let [at, bytes, nameChars] = [0, 0, 0];
  while (true) {
    signal?.throwIfAborted();
    const header = await read(at, TAR_BLOCK_BYTES);
    if (header.every((byte) => byte === 0)) return entries;
    at += TAR_BLOCK_BYTES;
    const plain = { ...parseHeader(header), offset: at };
    if ("xLK".includes(plain.typeFlag)) {
      if (plain.size > MAX_OVERRIDE_HEADER_BYTES) {
        throw malformedTarError("a name is longer than 8 KiB");
      }
      const text = await read(at, plain.size);
      overrides = { ...overrides, ...parseOverrides(plain.typeFlag, text) };
      at += roundUpToTarBlock(plain.size);
      continue;
    }
    const entry = { ...plain, ...overrides };
    overrides = {};
    at += roundUpToTarBlock(entry.size);
    // Global pax headers hold nothing that is needed here.
    if (entry.typeFlag === "g") continue;
    bytes += entry.size;
    nameChars += entry.name.length + entry.linkTarget.length;
    if (entries.push(entry) > maxEntries) {
      throw limitExceededError(`${maxEntries} entries`);
    }
    if (bytes > maxBytes) throw limitExceededError(`${maxBytes} bytes`);
    if (nameChars > MAX_NAME_CHARS) {
      throw limitExceededError(`${MAX_NAME_CHARS} characters of names`);
    }
  }
}

/**
 * Returns a function that reads bytes at an offset, through a buffer: most entries
 * are small. It throws `guest_failed` when the archive ends before.
 */
export function archiveReader(archive: Deno.FsFile) {
  let buffered = new Uint8Array();
  let start = 0;
  return async (at: number, count: number): Promise<Uint8Array> => {
    if (at < start || at + count > start + buffered.length) {
      const wanted = Math.max(count, BUFFER_BYTES);
      const { buffer, byteLength } = await readFileAt(archive, at, wanted);
      buffered = new Uint8Array(buffer as ArrayBuffer, 0, byteLength);
      start = at;
    }
    const bytes = buffered.subarray(at - start, at - start + count);
    if (bytes.length < count) throw malformedTarError("truncated");
    return bytes;
  };
}

export function roundUpToTarBlock(size: number): number {
  return Math.ceil(size / TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES;
}

function parseHeader(block: Uint8Array): TarHeader {
  const text = (at: number, length: number) => {
    const field = block.subarray(at, at + length);
    const end = field.indexOf(0);
    return decodeUtf8(end < 0 ? field : field.subarray(0, end));
  };
  const number = (at: number, length: number) => {
    const digits = text(at, length).trim();
    return /^[0-7]*$/.test(digits) ? parseInt(digits || "0", 8) : NaN;
  };
  const sum = block.reduce(
    (sum, byte, at) => sum + (at >= 148 && at < 156 ? 32 : byte),
    0,
  );
  if (number(148, 8) !== sum) throw malformedTarError("wrong header checksum");
  const prefix = text(257, 6) === "ustar" ? text(345, 155) : "";
  const type = String.fromCharCode(block[156]);
  const hasBytes = [...REGULAR_FILE_TYPE_FLAGS, ..."xLKg"].includes(type);
  return {
    name: prefix ? `${prefix}/${text(0, 100)}` : text(0, 100),
    linkTarget: text(157, 100),
    typeFlag: type,
    mode: number(100, 8) & 0o777,
    mtime: number(136, 12) || 0,
    size: hasBytes ? validSizeOrThrow(number(124, 12)) : 0,
  };
}

function validSizeOrThrow(size: number): number {
  if (Number.isSafeInteger(size) && size >= 0) return size;
  throw malformedTarError("invalid size");
}

function parseOverrides(type: string, bytes: Uint8Array): Partial<TarHeader> {
  if (type !== "x") {
    const text = decodeUtf8(bytes).replace(/\0.*$/s, "");
    return type === "L" ? { name: text } : { linkTarget: text };
  }
  const overrides: Partial<TarHeader> = {};
  for (let at = 0; at < bytes.length;) {
    const space = bytes.indexOf(32, at);
    const length = Number(decodeUtf8(bytes.subarray(at, space)));
    if (space < 0 || !(length > space - at) || at + length > bytes.length) {
      throw malformedTarError("invalid pax header");
    }
    const [, key, value] = /^([^=]*)=(.*)\n$/s
      .exec(decodeUtf8(bytes.subarray(space + 1, at + length))) ?? [];
    if (key === "path") overrides.name = value;
    if (key === "linkpath") overrides.linkTarget = value;
    if (key === "size") overrides.size = validSizeOrThrow(Number(value));
    if (key === "mtime" && Number(value)) overrides.mtime = Number(value);
    at += length;
  }
  return overrides;
}

/** Decodes invalid UTF-8 as U+FFFD, which no real name has. */
function decodeUtf8(bytes: Uint8Array): string {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
}

function malformedTarError(why: string): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `Malformed tar archive from the guest: ${why}`,
    { hint: "use an image whose tar writes POSIX or GNU archives" },
  );
}

export function limitExceededError(limit: string): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `Cannot sync an export from the guest: it holds more than ${limit}`,
    { hint: "write less into the exports, or use an image with 9p (no limit)" },
  );
}
