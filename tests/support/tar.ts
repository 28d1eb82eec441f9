/**
 * Writes tar archives entry by entry, as no honest program does.
 *
 * Format: POSIX.1-1988 "ustar".
 *
 * @module
 */

/** An entry of an archive. */
export interface TarEntry {
  /** Its path, whatever that is. */
  name: string;
  /** What it links to; makes it a hard link. */
  hardLinkTo?: string;
  /** The content of a file. */
  content?: string;
}

const BLOCK = 512;

/**
 * Makes a gzipped archive.
 *
 * @param entries The entries, in order.
 */
export async function tarGzip(
  entries: TarEntry[],
): Promise<Uint8Array<ArrayBuffer>> {
  const blocks: Uint8Array<ArrayBuffer>[] = [];
  for (const { name, hardLinkTo, content = "" } of entries) {
    const data = new TextEncoder().encode(content);
    const size = hardLinkTo === undefined ? data.length : 0;
    const header = new Uint8Array(BLOCK);
    const put = (text: string, at: number) =>
      header.set(new TextEncoder().encode(text), at);
    const octal = (value: number, digits: number) =>
      value.toString(8).padStart(digits, "0");
    put(name, 0);
    put(octal(0o644, 7), 100);
    put(octal(0, 7), 108);
    put(octal(0, 7), 116);
    put(octal(size, 11), 124);
    put(octal(0, 11), 136);
    put(" ".repeat(8), 148);
    put(hardLinkTo === undefined ? "0" : "1", 156);
    put(hardLinkTo ?? "", 157);
    put("ustar\0" + "00", 257);
    const sum = header.reduce((sum, byte) => sum + byte, 0);
    put(`${octal(sum, 6)}\0 `, 148);
    const body = new Uint8Array(Math.ceil(size / BLOCK) * BLOCK);
    body.set(data.subarray(0, size));
    blocks.push(header, body);
  }
  blocks.push(new Uint8Array(2 * BLOCK));
  const stream = new Blob(blocks).stream()
    .pipeThrough(new CompressionStream("gzip"));
  return await new Response(stream).bytes();
}
