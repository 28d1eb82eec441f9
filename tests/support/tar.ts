/**
 * Writes malformed and hostile tar archives entry by entry.
 *
 * Format: POSIX.1-1988 "ustar".
 */
import type { TarLimits } from "../../lib/guest/_tar_reader.ts";
import { unpackTar } from "../../lib/guest/_untar.ts";
import { writeAll } from "../../lib/system/write_all.ts";

/** An entry of an archive. */
export interface TarEntry {
  /** Its path, which may be invalid. */
  name: string;
  /** Target; makes it a hard link. */
  hardLinkTo?: string;
  /** The content of a file. */
  content?: string;
  /** Target; makes it a symbolic link. */
  linkTo?: string;
  /** The type flag, which may be invalid. @default {"0"} or that of a link */
  type?: string;
  /** The mode. @default {0o644} */
  mode?: number;
  /** The size that the header claims. @default {undefined} the content's */
  size?: number;
}

const BLOCK = 512;

/**
 * Makes an archive.
 *
 * @param entries The entries, in order.
 */
export function makeTar(entries: TarEntry[]): Uint8Array<ArrayBuffer> {
  const blocks: Uint8Array<ArrayBuffer>[] = [];
  for (const entry of entries) {
    const { name, hardLinkTo, linkTo, content = "", mode = 0o644 } = entry;
    const target = hardLinkTo ?? linkTo;
    const data = new TextEncoder().encode(content);
    const size = target === undefined ? data.length : 0;
    const usual = hardLinkTo !== undefined
      ? "1"
      : linkTo !== undefined
      ? "2"
      : "0";
    const header = new Uint8Array(BLOCK);
    const put = (text: string, at: number) =>
      header.set(new TextEncoder().encode(text), at);
    const octal = (value: number, digits: number) =>
      value.toString(8).padStart(digits, "0");
    put(name, 0);
    put(octal(mode, 7), 100);
    put(octal(0, 7), 108);
    put(octal(0, 7), 116);
    put(octal(entry.size ?? size, 11), 124);
    put(octal(0, 11), 136);
    put(" ".repeat(8), 148);
    put(entry.type ?? usual, 156);
    put(target ?? "", 157);
    put("ustar\0" + "00", 257);
    const sum = header.reduce((sum, byte) => sum + byte, 0);
    put(`${octal(sum, 6)}\0 `, 148);
    const body = new Uint8Array(Math.ceil(size / BLOCK) * BLOCK);
    body.set(data.subarray(0, size));
    blocks.push(header, body);
  }
  blocks.push(new Uint8Array(2 * BLOCK));
  const bytes = new Uint8Array(blocks.reduce((sum, it) => sum + it.length, 0));
  let at = 0;
  for (const block of blocks) {
    bytes.set(block, at);
    at += block.length;
  }
  return bytes;
}

/**
 * Makes a gzipped archive.
 *
 * @param entries The entries, in order.
 */
export async function makeTarGzip(
  entries: TarEntry[],
): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([makeTar(entries)]).stream()
    .pipeThrough(new CompressionStream("gzip"));
  return await new Response(stream).bytes();
}

/** Opens an archive as a temporary file without a name. */
export async function openArchive(bytes: Uint8Array): Promise<Deno.FsFile> {
  const path = await Deno.makeTempFile();
  const file = await Deno.open(path, { read: true, write: true });
  await Deno.remove(path);
  await writeAll(file, bytes);
  return file;
}

/** Unpacks an archive into a directory; returns the names of refused entries. */
export async function unpackBytes(
  bytes: Uint8Array,
  dir: string,
  limits: TarLimits,
): Promise<{ refused: string[] }> {
  using archive = await openArchive(bytes);
  return { refused: await unpackTar(archive, dir, limits) };
}
