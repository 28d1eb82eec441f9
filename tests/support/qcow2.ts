/**
 * A QCOW2 image, byte by byte: what `qemu-img` makes of a disk is never damaged,
 * and seldom at a limit.
 *
 * Format: QEMU, docs/interop/qcow2.txt.
 *
 * @module
 */

/** What an image is made of; all offsets are in bytes of the file. */
export interface Qcow2Parts {
  /** Version of the format. @default {3} */
  version?: number;
  /** A cluster has 2 to the power of so many bytes. @default {9} */
  clusterBits?: number;
  /** Size of the disk, in bytes. @default {what the second tables reach} */
  size?: number;
  /** Incompatible features, in version 3. @default {0n} */
  features?: bigint;
  /** Length of the header that it names, in version 3. @default {112} */
  headerLength?: number;
  /** Method of compression: 1 is Zstandard. @default {0} */
  compression?: number;
  /**
   * Entries of the second tables, of which each has a cluster of its own; of
   * 16 bytes, each has two here. @default {[[]]}
   */
  tables?: bigint[][];
  /** What stands behind the tables. @default {nothing} */
  data?: Uint8Array;
}

/** Where the data of an image begins, in bytes of the file. */
export function dataOffset({ clusterBits = 9, tables = [[]] }: Qcow2Parts) {
  return (2 + tables.length) * 2 ** clusterBits;
}

/** Makes an image: a cluster of header, one of the first table, the others, data. */
export function qcow2(parts: Qcow2Parts): DataView {
  const { version = 3, clusterBits = 9, features = 0n, tables = [[]] } = parts;
  const cluster = 2 ** clusterBits;
  const { data = new Uint8Array() } = parts;
  const start = dataOffset(parts);
  const view = new DataView(new ArrayBuffer(start + data.length));
  const perTable = cluster / ((features & 16n) === 0n ? 8 : 16);
  const size = parts.size ?? tables.length * perTable * cluster;
  view.setUint32(0, 0x514649fb);
  view.setUint32(4, version);
  view.setUint32(20, clusterBits);
  view.setBigUint64(24, BigInt(size));
  view.setUint32(36, tables.length);
  view.setBigUint64(40, BigInt(cluster));
  if (version === 3) {
    view.setBigUint64(72, features);
    view.setUint32(100, parts.headerLength ?? 112);
    view.setUint8(104, parts.compression ?? 0);
  }
  tables.forEach((entries, index) => {
    const at = (2 + index) * cluster;
    view.setBigUint64(cluster + 8 * index, BigInt(at));
    entries.forEach((entry, nth) => view.setBigUint64(at + 8 * nth, entry));
  });
  new Uint8Array(view.buffer).set(data, start);
  return view;
}

/** Puts an image, or the beginning of it, into a file. */
export async function writeImage(
  path: string,
  image: DataView,
  length: number = image.byteLength,
) {
  await Deno.writeFile(path, new Uint8Array(image.buffer as ArrayBuffer));
  await Deno.truncate(path, length);
  return path;
}

/** Words as they stand in an image. */
export function bytesOf(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}
