/**
 * Writing all of the bytes: a write may take only some of them.
 *
 * @module
 */

/**
 * Writes all of the bytes.
 *
 * @param writer A file, a socket, a terminal.
 * @param bytes What to write.
 */
export async function writeAll(
  writer: { write(bytes: Uint8Array): Promise<number> },
  bytes: Uint8Array,
): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    at += await writer.write(bytes.subarray(at));
  }
}

/**
 * Writes all of the bytes, and waits for it without letting others work.
 *
 * @param writer A file or a terminal.
 * @param bytes What to write.
 */
export function writeAllSync(
  writer: { writeSync(bytes: Uint8Array): number },
  bytes: Uint8Array,
): void {
  for (let at = 0; at < bytes.length;) {
    at += writer.writeSync(bytes.subarray(at));
  }
}
