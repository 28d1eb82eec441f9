/**
 * Looks a file up in a FAT file system, by its short name.
 *
 * Format: Microsoft, FAT32 File System Specification 1.03 (it describes FAT12 and
 * FAT16 as well); required of an EFI system partition by the UEFI Specification
 * 2.10, section 13.3.
 *
 * @module
 */
import type { DiskReader } from "./_disk_bytes.ts";

/** No directory that leads to a boot loader comes near it. */
const MAX_DIRECTORY = 64 * 1024;
const ENTRY = 32;
const DIRECTORY = 0x10;
const VOLUME = 0x08;
const DELETED = 0xe5;

/** Where things are in a file system. */
interface Layout {
  /** Where it begins on the disk, in bytes. */
  start: number;
  /** How many bits an entry of the table has. */
  bits: 12 | 16 | 32;
  /** Where the table begins, in bytes from the start. */
  table: number;
  /** The directory at the top: its first cluster, or its place and size. */
  root: number | { at: number; bytes: number };
  /** Where cluster 2 begins, in bytes from the start. */
  data: number;
  /** Size of a cluster, in bytes. */
  clusterSize: number;
  /** How many clusters there are. */
  clusters: number;
}

/** What a directory has of a name. */
interface Entry {
  directory: boolean;
  cluster: number;
}

/**
 * Tells whether a file is there.
 *
 * @param disk The disk.
 * @param start Where the file system begins, in bytes.
 * @param path Names from the top, in capitals, each of at most 8 characters and
 * an extension of 3.
 * @returns `false` also where there is no FAT file system, or a damaged one.
 */
export async function fatHasFile(
  disk: DiskReader,
  start: number,
  path: string[],
): Promise<boolean> {
  const layout = await readLayout(disk, start);
  if (!layout) return false;
  let from = layout.root;
  for (const [index, name] of path.entries()) {
    const entry = await findEntry(disk, layout, { from, name: packed(name) });
    const last = index === path.length - 1;
    if (!entry || entry.directory === last) return false;
    from = entry.cluster;
  }
  return true;
}

async function readLayout(
  disk: DiskReader,
  start: number,
): Promise<Layout | undefined> {
  const sector = await disk.read(start, 512);
  const u16 = (at: number) => sector.getUint16(at, true);
  const u32 = (at: number) => sector.getUint32(at, true);
  const sectorSize = u16(11);
  const perCluster = sector.getUint8(13);
  const isPower = (value: number) => value > 0 && (value & value - 1) === 0;
  if (u16(510) !== 0xaa55 || !isPower(perCluster)) return undefined;
  if (!isPower(sectorSize) || sectorSize < 512 || sectorSize > 4096) {
    return undefined;
  }
  const reserved = u16(14);
  const tableSectors = u16(22) || u32(36);
  const rootBytes = u16(17) * ENTRY;
  const tables = reserved + sector.getUint8(16) * tableSectors;
  const rootSectors = Math.ceil(rootBytes / sectorSize);
  const dataSectors = (u16(19) || u32(32)) - tables - rootSectors;
  const clusters = Math.floor(dataSectors / perCluster);
  if (reserved === 0 || clusters <= 0) return undefined;
  // The count of clusters alone says which kind it is.
  const bits = clusters < 4085 ? 12 : clusters < 65525 ? 16 : 32;
  return {
    start,
    bits,
    clusters,
    table: reserved * sectorSize,
    root: bits === 32 ? u32(44) : { at: tables * sectorSize, bytes: rootBytes },
    data: (tables + rootSectors) * sectorSize,
    clusterSize: perCluster * sectorSize,
  };
}

async function findEntry(
  disk: DiskReader,
  layout: Layout,
  { from, name }: { from: Layout["root"]; name: string },
): Promise<Entry | undefined> {
  for await (const part of directoryParts(disk, layout, from)) {
    for (let at = 0; at + ENTRY <= part.byteLength; at += ENTRY) {
      const first = part.getUint8(at);
      if (first === 0) return undefined;
      const attributes = part.getUint8(at + 11);
      if (first === DELETED || (attributes & VOLUME) !== 0) continue;
      const bytes = new Uint8Array(part.buffer, part.byteOffset + at, 11);
      if (String.fromCharCode(...bytes) !== name) continue;
      const high = layout.bits === 32 ? part.getUint16(at + 20, true) : 0;
      return {
        directory: (attributes & DIRECTORY) !== 0,
        cluster: high * 0x10000 + part.getUint16(at + 26, true),
      };
    }
  }
  return undefined;
}

/** A chain of clusters may be a circle: the size of a directory has a limit. */
async function* directoryParts(
  disk: DiskReader,
  layout: Layout,
  from: Layout["root"],
): AsyncGenerator<DataView> {
  const { start, data, clusterSize, clusters } = layout;
  if (typeof from === "object") {
    yield await disk.read(start + from.at, Math.min(from.bytes, MAX_DIRECTORY));
    return;
  }
  let cluster = from;
  for (let bytes = 0; bytes < MAX_DIRECTORY; bytes += clusterSize) {
    if (cluster < 2 || cluster >= clusters + 2) return;
    yield await disk.read(
      start + data + (cluster - 2) * clusterSize,
      Math.min(clusterSize, MAX_DIRECTORY),
    );
    cluster = await nextCluster(disk, layout, cluster);
  }
}

async function nextCluster(
  disk: DiskReader,
  { start, table, bits }: Layout,
  cluster: number,
): Promise<number> {
  const at = start + table + Math.floor(cluster * bits / 8);
  const entry = await disk.read(at, 4);
  if (bits === 32) return entry.getUint32(0, true) & 0x0fffffff;
  const word = entry.getUint16(0, true);
  if (bits === 16) return word;
  return cluster % 2 === 0 ? word & 0xfff : word >> 4;
}

/** A name as a directory has it: two fields, filled with spaces. */
function packed(name: string): string {
  const [stem, extension = ""] = name.split(".");
  return stem.padEnd(8) + extension.padEnd(3);
}
