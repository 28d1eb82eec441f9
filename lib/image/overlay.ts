/**
 * Writes empty QCOW2 overlays, whose disk shows the image below them.
 *
 * Format: QEMU, docs/interop/qcow2.txt ("Header", "Header extensions").
 */
import { ToolsmithError } from "../errors.ts";
import { QCOW2_MAGIC, readQcow2Header } from "./qcow2_header.ts";

const QCOW2_VERSION = 3;
const HEADER_BYTES = 104;
const BACKING_FORMAT_HEADER_ID = 0xe2792aca;
const CLUSTER_BITS = 16;
const CLUSTER_BYTES = 2 ** CLUSTER_BITS;
/** Binary logarithm of the size of a reference count, in bits. */
const REFCOUNT_ORDER = 4;
const MAX_BACKING_NAME_BYTES = 1023;

/**
 * Writes an overlay of an image, readable and writable by this user only. The overlay
 * must not exist; it refers to the image by its absolute path, which can be too long
 * for the format.
 */
export async function writeOverlay(path: string, image: string): Promise<void> {
  const { virtualSize } = await readQcow2Header(image);
  const name = new TextEncoder().encode(image);
  if (name.length > MAX_BACKING_NAME_BYTES) {
    const message =
      `Cannot create an overlay: the image's path is too long: ${image}`;
    const hint =
      `move the image to a path of at most ${MAX_BACKING_NAME_BYTES} bytes`;
    throw new ToolsmithError("usage", message, { hint });
  }
  const bytes = buildOverlay(virtualSize, name);
  await Deno.writeFile(path, bytes, { createNew: true, mode: 0o600 });
}

/** Builds header, refcount table, one refcount block, and an empty L1 table. */
function buildOverlay(size: number, name: Uint8Array): Uint8Array {
  // An L1 entry covers as many clusters as an L2 table has entries.
  const l1Entries = Math.ceil(size / (CLUSTER_BYTES * CLUSTER_BYTES / 8));
  const clusters = 3 + Math.max(1, Math.ceil(l1Entries * 8 / CLUSTER_BYTES));
  const bytes = new Uint8Array(clusters * CLUSTER_BYTES);
  const view = new DataView(bytes.buffer);
  const [refcountTable, refcountBlock, l1Table] = [1, 2, 3]
    .map((cluster) => cluster * CLUSTER_BYTES);
  const nameOffset = HEADER_BYTES + 24;
  view.setUint32(0, QCOW2_MAGIC);
  view.setUint32(4, QCOW2_VERSION);
  view.setBigUint64(8, BigInt(nameOffset));
  view.setUint32(16, name.length);
  view.setUint32(20, CLUSTER_BITS);
  view.setBigUint64(24, BigInt(size));
  view.setUint32(36, l1Entries);
  view.setBigUint64(40, BigInt(l1Table));
  view.setBigUint64(48, BigInt(refcountTable));
  view.setUint32(56, 1);
  view.setUint32(96, REFCOUNT_ORDER);
  view.setUint32(100, HEADER_BYTES);
  // State the backing format: QEMU's guess could be misled. No more extensions.
  view.setUint32(HEADER_BYTES, BACKING_FORMAT_HEADER_ID);
  view.setUint32(HEADER_BYTES + 4, 5);
  bytes.set(new TextEncoder().encode("qcow2"), HEADER_BYTES + 8);
  bytes.set(name, nameOffset);
  view.setBigUint64(refcountTable, BigInt(refcountBlock));
  for (let cluster = 0; cluster < clusters; cluster++) {
    view.setUint16(refcountBlock + cluster * 2, 1);
  }
  return bytes;
}
