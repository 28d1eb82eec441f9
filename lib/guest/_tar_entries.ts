/**
 * Reads the headers of a tar archive that may be hostile.
 *
 * Formats: POSIX.1-2017, `pax`, "ustar Interchange Format" and "pax Interchange
 * Format"; GNU tar's manual, "Basic Tar Format", for its long names.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import type { ByteReader } from "./_byte_reader.ts";

/** An entry, as its headers describe it. */
export interface TarEntry {
  /** Its path; a character that is no UTF-8 is U+FFFD. */
  name: string;
  /** What a link says. */
  target: string;
  /** The type's character. */
  type: string;
  /** Permissions alone: of set-ID bits nothing is read. */
  mode: number;
  /** Seconds since 1970. */
  mtime: number;
  /** Bytes that follow. */
  size: number;
}

/** What headers before an entry say of it. */
type Said = Partial<Record<"path" | "linkpath" | "size" | "mtime", string>>;

const BLOCK = 512;
const MAX_SAID = 8 * 1024;
/** Types of plain files. */
export const FILES = ["0", "\0", "7"];

/**
 * Reads the entries of an archive.
 *
 * @param reader The archive. What is left of a file's bytes is passed over.
 * @returns Each entry, with its bytes to come.
 * @throws {ToolsmithError} `guest_failed` for what is no archive.
 */
export async function* entriesOf(
  reader: ByteReader,
): AsyncGenerator<TarEntry> {
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

function applied(entry: TarEntry, said: Said): Partial<TarEntry> {
  const { path, linkpath, size, mtime } = said;
  return {
    ...path === undefined ? {} : { name: path },
    ...linkpath === undefined ? {} : { target: linkpath },
    ...size === undefined ? {} : { size: asSize(Number(size)) },
    ...mtime === undefined ? {} : { mtime: Number(mtime) || entry.mtime },
  };
}

function readHeader(block: Uint8Array): TarEntry {
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

function malformed(why: string): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `What the guest exports is no tar archive: ${why}`,
    { hint: "it needs a tar that writes the usual format" },
  );
}
