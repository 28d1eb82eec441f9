/**
 * Builds QCOW2 images byte by byte, to get corrupt ones and limits, which `qemu-img`
 * does not produce.
 *
 * Format: QEMU, docs/interop/qcow2.txt.
 */

/** The fields of an image; offsets are in bytes of the file. */
export interface Qcow2Parts {
  /** Version of the format. @default {3} */
  version?: number;
  /** Cluster size as a power of two. @default {9} */
  clusterBits?: number;
  /** Virtual disk size, in bytes. @default {what the L2 tables cover} */
  size?: number;
  /** Incompatible features, in version 3. @default {0n} */
  features?: bigint;
  /** The header length field, in version 3. @default {112} */
  headerLength?: number;
  /** Compression type: 1 is Zstandard. @default {0} */
  compression?: number;
  /**
   * Entries of the L2 tables, each in its own cluster; a 16-byte entry takes two
   * elements. @default {[[]]}
   */
  tables?: bigint[][];
  /** The bytes after the tables. @default {nothing} */
  data?: Uint8Array;
}

/** Returns the offset of an image's data, in bytes of the file. */
export function dataOffset({ clusterBits = 9, tables = [[]] }: Qcow2Parts) {
  return (2 + tables.length) * 2 ** clusterBits;
}

/** Builds an image: header cluster, L1 table cluster, L2 tables, data. */
export function makeQcow2(parts: Qcow2Parts): DataView {
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

/** Writes an image, or its beginning, to a file. */
export async function writeImage(
  path: string,
  image: DataView,
  length: number = image.byteLength,
) {
  await Deno.writeFile(path, new Uint8Array(image.buffer as ArrayBuffer));
  await Deno.truncate(path, length);
  return path;
}

/** Encodes text as UTF-8. */
export function textBytes(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}
