/**
 * A sparse disk in memory, and a FAT file system on it.
 *
 * Format: Microsoft, FAT32 File System Specification 1.03.
 */

/** A disk that reads as zeros where nothing was written. */
export class SparseDisk {
  readonly #sectors = new Map<number, Uint8Array>();
  /** Number of reads. */
  reads = 0;

  /** Writes bytes at an offset. */
  put(offset: number, bytes: ArrayLike<number>) {
    for (let nth = 0; nth < bytes.length; nth++) {
      const at = offset + nth;
      const sector = Math.floor(at / 512);
      const there = this.#sectors.get(sector) ?? new Uint8Array(512);
      there[at % 512] = bytes[nth];
      this.#sectors.set(sector, there);
    }
  }

  /** Writes a little-endian number of so many bytes. */
  putNumber(offset: number, value: number | bigint, length: number) {
    const shifts = Array.from({ length }, (_, nth) => BigInt(8 * nth));
    const bytes = shifts.map((by) => Number(BigInt(value) >> by & 0xffn));
    this.put(offset, bytes);
  }

  /** Reads a part, as a `DiskReader` does. */
  read(offset: number, length: number): Promise<DataView> {
    this.reads++;
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const within = (offset + done) % 512;
      const count = Math.min(length - done, 512 - within);
      const sector = this.#sectors.get(Math.floor((offset + done) / 512));
      if (sector) bytes.set(sector.subarray(within, within + count), done);
      done += count;
    }
    return Promise.resolve(new DataView(bytes.buffer));
  }
}

/** The parameters of a FAT file system. */
export interface FatShape {
  /** Where it begins, in bytes. @default {0} */
  start?: number;
  /** How many clusters it has. @default {100} */
  clusters?: number;
  /** @default {512} */
  sectorSize?: number;
  /** @default {1} */
  sectorsPerCluster?: number;
  /** Sectors before the tables. @default {2} */
  reserved?: number;
  /** How many tables there are. @default {2} */
  tables?: number;
  /** Capacity of the root directory of FAT12 and FAT16. @default {16} */
  rootEntries?: number;
}

/** Builds a file system: the boot sector at once, the rest as a test adds it. */
export class FatFileSystem {
  readonly #disk: SparseDisk;
  readonly #bits: number;
  readonly #start: number;
  readonly #table: number;
  readonly #root: number;
  readonly #data: number;
  readonly #clusterSize: number;

  constructor(disk: SparseDisk, shape: FatShape = {}) {
    const { start = 0, clusters = 100, sectorSize = 512, reserved = 2 } = shape;
    const { sectorsPerCluster = 1, tables = 2 } = shape;
    // The specification's limits tell FAT12, FAT16 and FAT32 apart.
    this.#bits = clusters < 4085 ? 12 : clusters < 65525 ? 16 : 32;
    const rootEntries = this.#bits === 32 ? 0 : shape.rootEntries ?? 16;
    const tableBytes = Math.ceil((clusters + 2) * this.#bits / 8);
    const tableSectors = Math.ceil(tableBytes / sectorSize);
    const root = reserved + tables * tableSectors;
    const data = root + Math.ceil(rootEntries * 32 / sectorSize);
    this.#disk = disk;
    this.#start = start;
    this.#table = start + reserved * sectorSize;
    this.#root = start + root * sectorSize;
    this.#data = start + data * sectorSize;
    this.#clusterSize = sectorsPerCluster * sectorSize;
    const sectors = data + clusters * sectorsPerCluster;
    const small = sectors < 0x10000;
    this.field(11, sectorSize, 2);
    this.field(13, sectorsPerCluster, 1);
    this.field(14, reserved, 2);
    this.field(16, tables, 1);
    this.field(17, rootEntries, 2);
    if (small) this.field(19, sectors, 2);
    else this.field(32, sectors, 4);
    if (this.#bits === 32) {
      this.field(36, tableSectors, 4);
      this.field(44, 2, 4);
      this.follow(2, 0x0fffffff);
    } else this.field(22, tableSectors, 2);
    this.field(510, 0xaa55, 2);
  }

  /** Sets a field of the boot sector. */
  field(offset: number, value: number, length: number) {
    this.#disk.putNumber(this.#start + offset, value, length);
  }

  /** Sets the next cluster in the FAT; in FAT12 this overwrites the neighbour's entry. */
  follow(cluster: number, next: number) {
    const disk = this.#disk;
    if (this.#bits !== 12) {
      const bytes = this.#bits / 8;
      // The highest four bits of FAT32 are reserved.
      const value = bytes === 4 ? (next | 0xa0000000) >>> 0 : next;
      return disk.putNumber(this.#table + cluster * bytes, value, bytes);
    }
    const at = this.#table + Math.floor(cluster * 3 / 2);
    const value = cluster % 2 === 0 ? 0xf000 | next : next << 4 | 0xf;
    disk.putNumber(at, value, 2);
  }

  /**
   * Writes a directory entry.
   *
   * @param directory Its cluster; 0 is the root directory of FAT12 and FAT16.
   * @param nth Index of the entry, from 0.
   * @param entry Its eleven-character name, attributes, and first cluster.
   */
  entry(
    directory: number,
    nth: number,
    { name, attributes = 0, cluster = 0 }: {
      name: string;
      attributes?: number;
      cluster?: number;
    },
  ) {
    const at = this.place(directory) + nth * 32;
    const disk = this.#disk;
    disk.put(at, [...name.padEnd(11)].map((char) => char.charCodeAt(0)));
    disk.putNumber(at + 11, attributes, 1);
    // FAT12 and FAT16 use these bytes differently.
    disk.putNumber(at + 20, this.#bits === 32 ? cluster >>> 16 : 0x1234, 2);
    disk.putNumber(at + 26, cluster & 0xffff, 2);
  }

  /** Fills a directory with entries of removed files. */
  removed(directory: number, count: number) {
    for (let nth = 0; nth < count; nth++) {
      this.entry(directory, nth, { name: "\xe5" });
    }
  }

  /** Offset of a cluster, in bytes; 0 is the root directory of FAT12 and FAT16. */
  place(cluster: number): number {
    if (cluster === 0) return this.#root;
    return this.#data + (cluster - 2) * this.#clusterSize;
  }
}

/** The attribute of a directory. */
export const DIRECTORY_ATTRIBUTE = 0x10;

/**
 * Adds EFI/BOOT with boot loaders to a file system with an empty root directory.
 *
 * @param fat The file system.
 * @param loaders Such as `BOOTX64 EFI`: the fields of a short name.
 * @param top The root directory's cluster; 0 for FAT12 and FAT16.
 */
export function putBootLoaders(fat: FatFileSystem, loaders: string[], top = 0) {
  fat.entry(top, 0, {
    name: "EFI",
    attributes: DIRECTORY_ATTRIBUTE,
    cluster: 5,
  });
  fat.entry(5, 0, {
    name: "BOOT",
    attributes: DIRECTORY_ATTRIBUTE,
    cluster: 6,
  });
  loaders.forEach((name, nth) => fat.entry(6, nth, { name, cluster: 7 }));
}
