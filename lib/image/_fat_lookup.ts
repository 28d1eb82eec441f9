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
/** Attributes of directories and volume labels: a file has neither. */
const KIND_ATTRIBUTES = 0x18;
const SECTOR_SIZES = [512, 1024, 2048, 4096];
/** Stands for the root directory of FAT12 and FAT16, which has no clusters. */
const FIXED_ROOT = 0;

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
  const fat = await openFat({
    read: (offset, length) => disk.read(start + offset, length),
  });
  let cluster = fat?.rootCluster;
  for (const [index, name] of path.entries()) {
    if (!fat || cluster === undefined) return false;
    const kind = index < path.length - 1 ? DIRECTORY_ATTRIBUTE : 0;
    cluster = await findInDirectory(fat, cluster, { name, kind });
  }
  return cluster !== undefined;
}

/** Returns the first cluster of a file or directory; `undefined` if it is missing. */
async function findInDirectory(
  { isFat32, readDirectory }: FatFileSystem,
  directory: number,
  { name, kind }: { name: string; kind: number },
): Promise<number | undefined> {
  // A directory stores a name as two fields, padded with spaces.
  const [stem, extension = ""] = name.split(".");
  const stored = stem.padEnd(8) + extension.padEnd(3);
  for await (const chunk of readDirectory(directory)) {
    for (let at = 0; at + ENTRY_BYTES <= chunk.byteLength; at += ENTRY_BYTES) {
      const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset + at, 11);
      if (bytes[0] === 0) return undefined;
      if (String.fromCharCode(...bytes) !== stored) continue;
      if ((chunk.getUint8(at + 11) & KIND_ATTRIBUTES) !== kind) continue;
      const high = isFat32 ? chunk.getUint16(at + 20, true) : 0;
      return high * 0x10000 + chunk.getUint16(at + 26, true);
    }
  }
}

type FatFileSystem = NonNullable<Awaited<ReturnType<typeof openFat>>>;

/** Reads the geometry of a file system; `undefined` if it is invalid. */
async function openFat({ read }: DiskReader) {
  const sector = await read(0, 512);
  const u16 = (at: number) => sector.getUint16(at, true);
  const u32 = (at: number) => sector.getUint32(at, true);
  const sectorSize = u16(11);
  const sectorsPerCluster = sector.getUint8(13);
  const clusterSize = sectorSize * sectorsPerCluster;
  const tableOffset = u16(14) * sectorSize;
  const tableSize = (u16(22) || u32(36)) * sectorSize;
  const rootOffset = tableOffset + sector.getUint8(16) * tableSize;
  const rootSize = u16(17) * ENTRY_BYTES;
  const dataOffset = rootOffset + Math.ceil(rootSize / sectorSize) * sectorSize;
  const size = (u16(19) || u32(32)) * sectorSize;
  const clusterCount = Math.floor((size - dataOffset) / clusterSize);
  const isValid = u16(510) === 0xaa55 && SECTOR_SIZES.includes(sectorSize) &&
    Number.isInteger(Math.log2(sectorsPerCluster)) && tableOffset > 0 &&
    clusterCount > 0;
  if (!isValid) return undefined;
  // By specification, the number of clusters alone determines the FAT type.
  const entryBits = clusterCount < 4085 ? 12 : clusterCount < 65525 ? 16 : 32;
  const isFat32 = entryBits === 32;

  async function nextCluster(cluster: number): Promise<number> {
    const offset = tableOffset + Math.floor(cluster * entryBits / 8);
    const entry = await read(offset, 4);
    if (isFat32) return entry.getUint32(0, true) & 0x0fffffff;
    const word = entry.getUint16(0, true);
    if (entryBits === 16) return word;
    return cluster % 2 === 0 ? word & 0xfff : word >> 4;
  }

  /** Stops after {@linkcode MAX_DIRECTORY_BYTES}: a cluster chain may be a cycle. */
  async function* readDirectory(first: number): AsyncGenerator<DataView> {
    if (first === FIXED_ROOT) {
      yield await read(rootOffset, Math.min(rootSize, MAX_DIRECTORY_BYTES));
      return;
    }
    const length = Math.min(clusterSize, MAX_DIRECTORY_BYTES);
    let cluster = first;
    for (let bytes = 0; bytes < MAX_DIRECTORY_BYTES; bytes += clusterSize) {
      if (cluster < 2 || cluster >= clusterCount + 2) return;
      yield await read(dataOffset + (cluster - 2) * clusterSize, length);
      cluster = await nextCluster(cluster);
    }
  }

  const rootCluster = isFat32 ? u32(44) : FIXED_ROOT;
  return { isFat32, rootCluster, readDirectory };
}
