/**
 * Partitions, file systems and images in plain files, without loop devices or
 * mounts.
 */
import { writeAll } from "../../lib/system/write_all.ts";
import { runOrThrow } from "./_programs.ts";

/** Bytes. */
export const MEBIBYTE = 2 ** 20;
/** Bytes. */
export const SECTOR = 512;
/** FAT16 needs at least about 4,100 clusters, in MiB. */
const MIN_FAT16_MIB = 16;
/** Offset of the first partition, in MiB. */
export const FIRST_PARTITION_MIB = 1;
/**
 * Makes a FAT16 file system, to be put at {@linkcode FIRST_PARTITION_MIB}.
 *
 * Needs `--allow-run=mkfs.vfat`, `--allow-write`.
 *
 * @param path Its file.
 * @param size In MiB; see {@linkcode fatSizeMib}.
 */
export async function makeFatPartition(
  path: string,
  size: number,
): Promise<string> {
  await makeSparseFile(path, size);
  const hidden = `${FIRST_PARTITION_MIB * MEBIBYTE / SECTOR}`;
  await runOrThrow("mkfs.vfat", {
    args: ["-F", "16", "-h", hidden, "--invariant", path],
  });
  return path;
}

/**
 * The size of a FAT16 file system that has room for files, in MiB.
 *
 * Needs `--allow-read`.
 *
 * @param files Their paths.
 */
export function fatSizeMib(files: string[]): number {
  const bytes = files.map((path) => Deno.statSync(path).size)
    .reduce((sum, size) => sum + size, 0);
  return Math.max(MIN_FAT16_MIB, Math.ceil(bytes * 1.1 / MEBIBYTE) + 4);
}

/** What {@linkcode partitionDisk} makes. */
export interface Partition {
  /** sfdisk's name or number of the partition type. */
  type: string;
  /** In MiB. @default {undefined} the rest of the disk, except the last MiB */
  size?: number;
  /** Sets the MBR's boot flag. @default {false} */
  bootable?: boolean;
}

/**
 * Writes a partition table; the first partition is at
 * {@linkcode FIRST_PARTITION_MIB}.
 *
 * Needs `--allow-run=sfdisk`.
 *
 * @param disk The disk's file.
 * @param label Kind of the table.
 * @param partitions The partitions, which follow each other.
 */
export async function partitionDisk(
  disk: string,
  label: "dos" | "gpt",
  partitions: Partition[],
): Promise<void> {
  const lines = partitions.map(({ type, size, bootable }, index) =>
    [
      ...index === 0 ? [`start=${FIRST_PARTITION_MIB}MiB`] : [],
      ...size ? [`size=${size}MiB`] : [],
      `type=${type}`,
      ...bootable ? ["bootable"] : [],
    ].join(", ")
  );
  const id = label === "dos" ? "label-id: 0x746f6f6c\n" : "";
  await runOrThrow("sfdisk", {
    args: ["--quiet", disk],
    input: `label: ${label}\n${id}${lines.join("\n")}\n`,
  });
}

/**
 * Writes bytes into the middle of a file.
 *
 * Needs `--allow-write`.
 *
 * @param path The file.
 * @param offset In bytes.
 * @param bytes The bytes to write.
 */
export async function copyFileInto(
  path: string,
  offset: number,
  bytes: Uint8Array,
): Promise<void> {
  using file = await Deno.open(path, { write: true });
  await file.seek(offset, Deno.SeekMode.Start);
  await writeAll(file, bytes);
}

/**
 * Makes a sparse file of zeros.
 *
 * Needs `--allow-write`.
 *
 * @param path The file.
 * @param size In MiB.
 * @returns The path.
 */
export async function makeSparseFile(
  path: string,
  size: number,
): Promise<string> {
  await Deno.writeFile(path, new Uint8Array());
  await Deno.truncate(path, size * MEBIBYTE);
  return path;
}

/**
 * Converts a raw disk to a compressed QCOW2.
 *
 * Needs `--allow-run=qemu-img`.
 *
 * @param disk The disk's file.
 * @param image The QCOW2.
 */
export async function compressToQcow2(
  disk: string,
  image: string,
): Promise<void> {
  const args = ["-q", "-c", "-W", "-m", "4", "-f", "raw", "-O", "qcow2"];
  await runOrThrow("qemu-img", { args: ["convert", ...args, disk, image] });
}
