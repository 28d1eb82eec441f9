/**
 * Finds the end of a Zstandard frame: the next cluster of an image may follow it,
 * and would be decompressed as well.
 *
 * Format: RFC 8878, section 3.1.1.
 *
 * @module
 */

const MAGIC = 0xfd2fb528;
/** A block that is one byte, to be repeated. */
const REPEATED = 1;

/**
 * The bytes of the first frame.
 *
 * @param bytes They begin with a frame.
 * @returns The frame alone; all bytes where there is none that is whole.
 */
export function firstFrame(bytes: Uint8Array): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 5 || view.getUint32(0, true) !== MAGIC) return bytes;
  const flags = view.getUint8(4);
  const single = flags >> 5 & 1;
  const dictionary = [0, 1, 2, 4][flags & 3];
  const size = [single, 2, 4, 8][flags >> 6];
  const checksum = flags >> 2 & 1 ? 4 : 0;
  for (let at = 5 + (1 - single) + dictionary + size; at + 3 <= bytes.length;) {
    const header = view.getUint16(at, true) | view.getUint8(at + 2) << 16;
    const repeated = (header >> 1 & 3) === REPEATED;
    at += 3 + (repeated ? 1 : header >> 3);
    if (header & 1) return bytes.subarray(0, at + checksum);
  }
  return bytes;
}
