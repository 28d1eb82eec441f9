/**
 * Finds the compressed clusters of a QCOW2 image.
 *
 * Format: QEMU, docs/interop/qcow2.txt, "Cluster mapping" and "Compressed Clusters
 * Descriptor".
 */
import { readFileAt } from "../system/files.ts";
import {
  CLUSTER_OFFSET_MASK,
  type Qcow2Header,
  readQcow2HeaderFrom,
} from "./qcow2_header.ts";

const MAX_CLUSTERS = 4_000_000;
/** Reading them takes seconds; enough for 128 GiB in clusters of 4 KiB. */
const MAX_TABLES = 65_536;

/**
 * Returns the offsets of the compressed clusters in the file, in order: none if it is
 * not QCOW2, is damaged, or has more than 4 million of them.
 */
export async function compressedClusterOffsets(file: Deno.FsFile) {
  const header = await readQcow2HeaderFrom(file, "").catch(() => undefined);
  if (!header) return Float64Array.of();
  const { clusterSize, fileSize, extendedL2 } = header;
  // An offset has up to 61 bits, more than bitwise operators take.
  const upperMask = 2 ** (38 - Math.log2(clusterSize)) - 1;
  const found: number[] = [];
  for await (const l2 of readL2Tables(file, header)) {
    for (let at = 0; at + 8 <= l2.byteLength; at += extendedL2 ? 16 : 8) {
      const upper = l2.getUint32(at);
      const isCompressed = (upper >> 30 & 1) !== 0;
      const offset = (upper & upperMask) * 2 ** 32 + l2.getUint32(at + 4);
      if (isCompressed && offset < fileSize) found.push(offset);
    }
    if (found.length > MAX_CLUSTERS) return Float64Array.of();
  }
  return Float64Array.from(found).sort();
}

/**
 * Yields the L2 tables that the L1 table names, in its order: the first 65,536. Of
 * a table larger than `maxTableBytes`, only the start is read.
 */
export async function* readL2Tables(
  file: Deno.FsFile,
  { l1Offset, l1EntryCount, clusterSize, fileSize }: Qcow2Header,
  maxTableBytes = Infinity,
): AsyncGenerator<DataView> {
  const l1Bytes = Math.min(l1EntryCount * 8, maxTableBytes);
  const l1 = await readFileAt(file, l1Offset, l1Bytes);
  const tables = new Set<number>();
  for (let at = 0; at + 8 <= l1.byteLength; at += 8) {
    const table = Number(l1.getBigUint64(at) & CLUSTER_OFFSET_MASK);
    // Overlapping tables would make the work more than linear.
    const isValid = table > 0 && table < fileSize && table % clusterSize === 0;
    if (isValid && tables.size < MAX_TABLES) tables.add(table);
  }
  const l2Bytes = Math.min(clusterSize, maxTableBytes);
  for (const table of tables) yield await readFileAt(file, table, l2Bytes);
}
