/**
 * Writing files with holes: what is zeros takes no room on the disk.
 *
 * @module
 */
import { writeAll } from "./streams.ts";

/** Smaller holes are not worth a seek, and some filesystems have none. */
const BLOCK = 64 * 1024;

/**
 * Writes bytes at the file's position, and leaves holes where whole blocks of
 * 64 KiB are zeros. A file that ends in a hole has its length only once it is
 * truncated to it.
 *
 * @param file A file that has nothing at that place yet.
 * @param bytes What to write.
 */
export async function writeSparse(
  file: Deno.FsFile,
  bytes: Uint8Array<ArrayBuffer>,
): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    const isHole = isZero(bytes.subarray(at, at + BLOCK));
    let end = at;
    do end = Math.min(end + BLOCK, bytes.length); while (
      end < bytes.length && isZero(bytes.subarray(end, end + BLOCK)) === isHole
    );
    if (isHole) await file.seek(end - at, Deno.SeekMode.Current);
    else await writeAll(file, bytes.subarray(at, end));
    at = end;
  }
}

/** Most blocks show with their first bytes that they are none. */
function isZero(block: Uint8Array<ArrayBuffer>): boolean {
  const aligned = block.byteOffset % 4 === 0;
  const words = aligned
    ? new Uint32Array(block.buffer, block.byteOffset, block.length >> 2)
    : new Uint32Array();
  // A loop takes a fifth of the time that `every` does.
  for (let at = 0; at < words.length; at++) if (words[at] !== 0) return false;
  for (let at = words.length * 4; at < block.length; at++) {
    if (block[at] !== 0) return false;
  }
  return true;
}
