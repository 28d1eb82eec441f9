/**
 * Writes QCOW2 overlays: disks that have nothing of their own yet, and show what
 * the image below them holds.
 *
 * Format: QEMU, docs/interop/qcow2.txt ("Header", "Header extensions").
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { inspectQcow2 } from "./qcow2.ts";

const MAGIC = 0x514649fb;
const VERSION = 3;
const HEADER_BYTES = 104;
const BACKING_FORMAT = 0xe2792aca;
const CLUSTER_BITS = 16;
const CLUSTER = 2 ** CLUSTER_BITS;
/** A count of references has 2 to this many bits. */
const REFCOUNT_ORDER = 4;
const MAX_NAME = 1023;

/**
 * Writes an overlay of an image, for this user alone.
 *
 * Needs `--allow-read` for the image, and `--allow-write` for the overlay.
 *
 * @param path The overlay, which must not be there.
 * @param image Absolute path of the image, a QCOW2; the overlay names it.
 * @throws {ToolsmithError} `image_invalid` for an image that is none; `usage` for
 * a path that is too long for the format.
 * @throws {Deno.errors.AlreadyExists} When the overlay is there.
 */
export async function writeOverlay(path: string, image: string): Promise<void> {
  const { virtualSize } = await inspectQcow2(image);
  const name = new TextEncoder().encode(image);
  if (name.length > MAX_NAME) {
    throw new ToolsmithError(
      "usage",
      `The image's path is too long for an overlay: ${image}`,
      { hint: `a QCOW2 can name one of ${MAX_NAME} bytes` },
    );
  }
  const bytes = overlay(virtualSize, name);
  await Deno.writeFile(path, bytes, { createNew: true, mode: 0o600 });
}

/** Header, table of counts, one block of counts, and an empty first table. */
function overlay(size: number, name: Uint8Array): Uint8Array {
  // An entry of the first table leads to as many clusters as a second one holds.
  const entries = Math.ceil(size / (CLUSTER * CLUSTER / 8));
  const clusters = 3 + Math.max(1, Math.ceil(entries * 8 / CLUSTER));
  const bytes = new Uint8Array(clusters * CLUSTER);
  const view = new DataView(bytes.buffer);
  const [table, block, first] = [1, 2, 3].map((at) => at * CLUSTER);
  const nameOffset = HEADER_BYTES + 24;
  view.setUint32(0, MAGIC);
  view.setUint32(4, VERSION);
  view.setBigUint64(8, BigInt(nameOffset));
  view.setUint32(16, name.length);
  view.setUint32(20, CLUSTER_BITS);
  view.setBigUint64(24, BigInt(size));
  view.setUint32(36, entries);
  view.setBigUint64(40, BigInt(first));
  view.setBigUint64(48, BigInt(table));
  view.setUint32(56, 1);
  view.setUint32(96, REFCOUNT_ORDER);
  view.setUint32(100, HEADER_BYTES);
  // The format is named, as a guess could be led astray; no more extensions.
  view.setUint32(HEADER_BYTES, BACKING_FORMAT);
  view.setUint32(HEADER_BYTES + 4, 5);
  bytes.set(new TextEncoder().encode("qcow2"), HEADER_BYTES + 8);
  bytes.set(name, nameOffset);
  view.setBigUint64(table, BigInt(block));
  for (let at = 0; at < clusters; at++) view.setUint16(block + at * 2, 1);
  return bytes;
}
