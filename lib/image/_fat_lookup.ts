/**
 * Looks up a file by its short name in a FAT12, FAT16 or FAT32 file system.
 *
 * Format: Microsoft, FAT32 File System Specification 1.03; required for an EFI
 * system partition by the UEFI Specification 2.10, section 13.3.
 */
import type { DiskReader } from "./_qcow2_disk.ts";

/** Far above the size of a directory that holds a boot loader. */
const MAX_DIRECTORY_BYTES = 64 * 1024;
const ENTRY_BYTES = 32;
const DIRECTORY_ATTRIBUTE = 0x10;
const VOLUME_LABEL_ATTRIBUTE = 0x08;
const DELETED_MARKER = 0xe5;

/** Geometry of a file system; offsets are in bytes. */
interface FatLayout {
  /** Offset of the file system on the disk. */
  diskOffset: number;
  /** Size of an entry of the file allocation table, in bits. */
  tableEntryBits: 12 | 16 | 32;
  /** Offset of the table, from the start. */
  tableOffset: number;
  /** The root directory: its first cluster, or its offset and size. */
  root: number | { offset: number; bytes: number };
  /** Offset of cluster 2, from the start. */
  dataOffset: number;
  clusterSize: number;
  clusterCount: number;
}

/**
 * Returns whether a file exists; `false` also without a valid FAT file system. The file
 * system starts at the byte `start` of the disk. The path consists of upper-case short
 * names from the root directory: at most 8 characters and an extension of 3.
 */
export async function fatHasFile(
  disk: DiskReader,
  start: number,
  path: string[],
): Promise<boolean> {
  const layout = await readFatLayout(disk, start);
  if (!layout) return false;
  let directory = layout.root;
  for (const [index, name] of path.entries()) {
    const query = { directory, paddedName: padShortName(name) };
    const entry = await findDirectoryEntry(disk, layout, query);
    const isLast = index === path.length - 1;
    if (!entry || entry.isDirectory === isLast) return false;
    directory = entry.firstCluster;
  }
  return true;
}

async function readFatLayout(
  disk: DiskReader,
  start: number,
): Promise<FatLayout | undefined> {
  const sector = await disk.read(start, 512);
  const u16 = (at: number) => sector.getUint16(at, true);
  const u32 = (at: number) => sector.getUint32(at, true);
  const sectorSize = u16(11);
  const perCluster = sector.getUint8(13);
  const isPowerOf2 = (value: number) => value > 0 && (value & value - 1) === 0;
  if (u16(510) !== 0xaa55 || !isPowerOf2(perCluster)) return undefined;
  if (!isPowerOf2(sectorSize) || sectorSize < 512 || sectorSize > 4096) {
    return undefined;
  }
  const reserved = u16(14);
  const tableSectors = u16(22) || u32(36);
  const rootBytes = u16(17) * ENTRY_BYTES;
  const rootSector = reserved + sector.getUint8(16) * tableSectors;
  const rootOffset = rootSector * sectorSize;
  const dataSector = rootSector + Math.ceil(rootBytes / sectorSize);
  const dataSectors = (u16(19) || u32(32)) - dataSector;
  const clusterCount = Math.floor(dataSectors / perCluster);
  if (reserved === 0 || clusterCount <= 0) return undefined;
  // By specification, the number of clusters alone determines the FAT type.
  const entryBits = clusterCount < 4085 ? 12 : clusterCount < 65525 ? 16 : 32;
  return {
    diskOffset: start,
    tableEntryBits: entryBits,
    clusterCount,
    tableOffset: reserved * sectorSize,
    root: entryBits === 32 ? u32(44) : { offset: rootOffset, bytes: rootBytes },
    dataOffset: dataSector * sectorSize,
    clusterSize: perCluster * sectorSize,
  };
}

async function findDirectoryEntry(
  disk: DiskReader,
  layout: FatLayout,
  { directory, paddedName }: {
    directory: FatLayout["root"];
    paddedName: string;
  },
) {
  for await (const chunk of readDirectoryChunks(disk, layout, directory)) {
    for (let at = 0; at + ENTRY_BYTES <= chunk.byteLength; at += ENTRY_BYTES) {
      const first = chunk.getUint8(at);
      if (first === 0) return undefined;
      const attributes = chunk.getUint8(at + 11);
      const isLabel = (attributes & VOLUME_LABEL_ATTRIBUTE) !== 0;
      if (first === DELETED_MARKER || isLabel) continue;
      const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset + at, 11);
      if (String.fromCharCode(...bytes) !== paddedName) continue;
      const isFat32 = layout.tableEntryBits === 32;
      const high = isFat32 ? chunk.getUint16(at + 20, true) : 0;
      return {
        isDirectory: (attributes & DIRECTORY_ATTRIBUTE) !== 0,
        firstCluster: high * 0x10000 + chunk.getUint16(at + 26, true),
      };
    }
  }
  return undefined;
}

/** Stops after {@linkcode MAX_DIRECTORY_BYTES}: a cluster chain may be a cycle. */
async function* readDirectoryChunks(
  disk: DiskReader,
  layout: FatLayout,
  directory: FatLayout["root"],
): AsyncGenerator<DataView> {
  const { diskOffset, dataOffset, clusterSize, clusterCount } = layout;
  if (typeof directory === "object") {
    const bytes = Math.min(directory.bytes, MAX_DIRECTORY_BYTES);
    yield await disk.read(diskOffset + directory.offset, bytes);
    return;
  }
  let cluster = directory;
  const chunkBytes = Math.min(clusterSize, MAX_DIRECTORY_BYTES);
  for (let bytes = 0; bytes < MAX_DIRECTORY_BYTES; bytes += clusterSize) {
    if (cluster < 2 || cluster >= clusterCount + 2) return;
    const offset = diskOffset + dataOffset + (cluster - 2) * clusterSize;
    yield await disk.read(offset, chunkBytes);
    cluster = await nextCluster(disk, layout, cluster);
  }
}

async function nextCluster(
  disk: DiskReader,
  { diskOffset, tableOffset, tableEntryBits }: FatLayout,
  cluster: number,
): Promise<number> {
  const offset = diskOffset + tableOffset +
    Math.floor(cluster * tableEntryBits / 8);
  const entry = await disk.read(offset, 4);
  if (tableEntryBits === 32) return entry.getUint32(0, true) & 0x0fffffff;
  const word = entry.getUint16(0, true);
  if (tableEntryBits === 16) return word;
  return cluster % 2 === 0 ? word & 0xfff : word >> 4;
}

/** Formats a name as a directory stores it: two fields, padded with spaces. */
function padShortName(name: string): string {
  const [stem, extension = ""] = name.split(".");
  return stem.padEnd(8) + extension.padEnd(3);
}
