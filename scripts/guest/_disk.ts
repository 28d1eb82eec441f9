/**
 * Partitions, file systems and images in plain files, without loop devices or
 * mounts.
 *
 * @module
 */
import { writeAll } from "../../lib/system/streams.ts";
import { must } from "./_programs.ts";

/** Bytes. */
export const MEBIBYTE = 2 ** 20;
/** Bytes. */
export const SECTOR = 512;
/** FAT16 needs some 4,100 clusters, in MiB. */
const MIN_FAT = 16;
/** Where the first partition begins, in MiB. */
export const FIRST_MEBIBYTE = 1;
/**
 * Makes a FAT16 file system, to be put at {@linkcode FIRST_MEBIBYTE}.
 *
 * Needs `--allow-run=mkfs.vfat`, `--allow-write`.
 *
 * @param path Its file.
 * @param size In MiB; see {@linkcode fatSize}.
 */
export async function fatPartition(
  path: string,
  size: number,
): Promise<string> {
  await emptyFile(path, size);
  const hidden = `${FIRST_MEBIBYTE * MEBIBYTE / SECTOR}`;
  await must("mkfs.vfat", {
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
export function fatSize(files: string[]): number {
  const bytes = files.map((path) => Deno.statSync(path).size)
    .reduce((sum, size) => sum + size, 0);
  return Math.max(MIN_FAT, Math.ceil(bytes * 1.1 / MEBIBYTE) + 4);
}

/** What {@linkcode partition} makes. */
export interface Partition {
  /** sfdisk's name or number for what is in it. */
  type: string;
  /** In MiB. @default {undefined} all that is left, but for the last MiB */
  size?: number;
  /** Mark it as the one that a BIOS starts from. @default {false} */
  bootable?: boolean;
}

/**
 * Writes a partition table; the first partition is at
 * {@linkcode FIRST_MEBIBYTE}.
 *
 * Needs `--allow-run=sfdisk`.
 *
 * @param disk The disk's file.
 * @param label Kind of the table.
 * @param partitions The partitions, which follow each other.
 */
export async function partition(
  disk: string,
  label: "dos" | "gpt",
  partitions: Partition[],
): Promise<void> {
  const lines = partitions.map(({ type, size, bootable }, index) =>
    [
      ...index === 0 ? [`start=${FIRST_MEBIBYTE}MiB`] : [],
      ...size ? [`size=${size}MiB`] : [],
      `type=${type}`,
      ...bootable ? ["bootable"] : [],
    ].join(", ")
  );
  const id = label === "dos" ? "label-id: 0x746f6f6c\n" : "";
  await must("sfdisk", {
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
 * @param offset Where, in bytes.
 * @param bytes What.
 */
export async function splice(
  path: string,
  offset: number,
  bytes: Uint8Array,
): Promise<void> {
  using file = await Deno.open(path, { write: true });
  await file.seek(offset, Deno.SeekMode.Start);
  await writeAll(file, bytes);
}

/**
 * Makes a file of zeros that takes no room.
 *
 * Needs `--allow-write`.
 *
 * @param path The file.
 * @param size In MiB.
 * @returns The path.
 */
export async function emptyFile(path: string, size: number): Promise<string> {
  await Deno.writeFile(path, new Uint8Array());
  await Deno.truncate(path, size * MEBIBYTE);
  return path;
}

/**
 * Makes a compressed QCOW2 of a disk.
 *
 * Needs `--allow-run=qemu-img`.
 *
 * @param disk The disk's file.
 * @param image The QCOW2.
 */
export async function compress(disk: string, image: string): Promise<void> {
  const args = ["-q", "-c", "-W", "-m", "4", "-f", "raw", "-O", "qcow2"];
  await must("qemu-img", { args: ["convert", ...args, disk, image] });
}
