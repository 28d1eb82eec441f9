/**
 * Disks that GRUB boots, by BIOS or by UEFI.
 *
 * @module
 */
import { join } from "@std/path";
import {
  compress,
  emptyFile,
  fatPartition,
  fatSize,
  FIRST_MEBIBYTE,
  MEBIBYTE,
  partition,
  SECTOR,
  splice,
} from "./_disk.ts";
import { must } from "./_programs.ts";

/** Where a disk is written. */
export interface DiskOptions {
  /** Where to write what is needed on the way, and the image. */
  dir: string;
  /** The image's file name in it. */
  image: string;
}

/** A program that runs before the kernel, made by `grub-mkimage`. */
interface Grub {
  /** GRUB's name for the system that it runs on. */
  format: "i386-pc" | "x86_64-efi" | "arm64-efi";
  /** What it does; nobody is asked anything. */
  config: string;
  /** Its parts, besides those that these need. */
  modules: string[];
  /** Where its parts are. @default {"/usr/lib/grub/<format>"} */
  parts?: string;
}

/** What a disk with a root file system offers its guest, in MiB. */
const DISK_SIZE = 2048;
/** The part of it that holds the boot loader for EFI, in MiB. */
const ESP_SIZE = 16;
/** The loader's first sector; the partition table follows it. */
const LOADER_BYTES = 440;

/** Finds the root file system by its label, whatever disk it is on. */
const START_ROOT = `search.fs_label root root
linux /vmlinuz root=LABEL=root ro console=ttyS0 quiet
initrd /initrd.img
boot
`;

/** The kernel lies beside the boot loader. */
const START_ESP = `search.file /initrd.gz root
linux /vmlinuz console=ttyAMA0 quiet panic=-1
initrd /initrd.gz
boot
`;

/**
 * Makes a disk from a tree with a kernel in it, that a BIOS boots: an MBR, GRUB
 * before the first partition, and an ext4 file system labelled `root`.
 *
 * Needs `--allow-run`, `--allow-read`, `--allow-write`.
 *
 * @param tree The files, with their owners.
 * @param options Where to write.
 */
export async function biosDisk(
  tree: string,
  options: DiskOptions,
): Promise<void> {
  const disk = await emptyFile(join(options.dir, "disk.raw"), DISK_SIZE);
  await partition(disk, "dos", [{ type: "83", bootable: true }]);
  const core = await grub(options.dir, {
    format: "i386-pc",
    config: START_ROOT,
    modules: ["biosdisk", "part_msdos", "ext2", "search_label", "linux"],
  });
  const boot = await Deno.readFile("/usr/lib/grub/i386-pc/boot.img");
  await splice(disk, 0, boot.subarray(0, LOADER_BYTES));
  // Unpatched, the first sector loads the rest from the one that follows it.
  await splice(disk, SECTOR, await Deno.readFile(core));
  await rootFileSystem(disk, tree, FIRST_MEBIBYTE);
  await compress(disk, join(options.dir, options.image));
}

/**
 * Makes a disk from a tree with a kernel in it, that UEFI alone boots: a GPT, a
 * system partition with GRUB, and an ext4 file system labelled `root`.
 *
 * Needs `--allow-run`, `--allow-read`, `--allow-write`.
 *
 * @param tree The files, with their owners.
 * @param options Where to write.
 */
export async function efiDisk(
  tree: string,
  options: DiskOptions,
): Promise<void> {
  const disk = await emptyFile(join(options.dir, "disk.raw"), DISK_SIZE);
  await partition(disk, "gpt", [
    { type: "uefi", size: ESP_SIZE },
    { type: "linux" },
  ]);
  const program = await grub(options.dir, {
    format: "x86_64-efi",
    config: START_ROOT,
    modules: ["part_gpt", "ext2", "search_label", "linux"],
  });
  const esp = await fatPartition(join(options.dir, "esp.img"), ESP_SIZE);
  await copyIntoEsp(esp, program, "BOOTX64.EFI");
  await splice(disk, FIRST_MEBIBYTE * MEBIBYTE, await Deno.readFile(esp));
  await rootFileSystem(disk, tree, FIRST_MEBIBYTE + ESP_SIZE);
  await compress(disk, join(options.dir, options.image));
}

/**
 * Makes a disk that UEFI boots on arm64: a GPT with a system partition, which
 * holds GRUB, the kernel and its memory disk.
 *
 * Needs `--allow-run`, `--allow-read`, `--allow-write`.
 *
 * @param files The kernel, `vmlinuz`, and its memory disk, `initrd.gz`.
 * @param options Where to write, and where GRUB's parts for arm64 are.
 */
export async function arm64Disk(
  files: string[],
  options: DiskOptions & { grubParts: string },
): Promise<void> {
  const program = await grub(options.dir, {
    format: "arm64-efi",
    config: START_ESP,
    modules: ["part_gpt", "fat", "search_fs_file", "linux"],
    parts: options.grubParts,
  });
  const size = fatSize([program, ...files]);
  const disk = await emptyFile(
    join(options.dir, "disk.raw"),
    FIRST_MEBIBYTE + size + 1,
  );
  await partition(disk, "gpt", [{ type: "uefi", size }]);
  const esp = await fatPartition(join(options.dir, "esp.img"), size);
  await copyIntoEsp(esp, program, "BOOTAA64.EFI");
  await must("mcopy", { args: ["-i", esp, ...files, "::/"] });
  await splice(disk, FIRST_MEBIBYTE * MEBIBYTE, await Deno.readFile(esp));
  await compress(disk, join(options.dir, options.image));
}

async function grub(dir: string, options: Grub): Promise<string> {
  const { format, config, modules } = options;
  const { parts = `/usr/lib/grub/${format}` } = options;
  const [image, script] = [join(dir, "grub"), join(dir, "grub.cfg")];
  await Deno.writeTextFile(script, config);
  await must("grub-mkimage", {
    args: ["-O", format, "-d", parts, "-p", "/", "-c", script, "-o", image]
      .concat(modules),
  });
  return image;
}

async function copyIntoEsp(esp: string, program: string, name: string) {
  await must("mmd", { args: ["-i", esp, "::/EFI", "::/EFI/BOOT"] });
  await must("mcopy", { args: ["-i", esp, program, `::/EFI/BOOT/${name}`] });
}

/** Fills the rest of a disk, but for its last MiB, where a GPT has its copy. */
async function rootFileSystem(disk: string, tree: string, start: number) {
  const size = DISK_SIZE - start - 1;
  await must("mke2fs", {
    args: ["-q", "-t", "ext4", "-L", "root", "-d", tree, "-E"]
      .concat(`offset=${start * MEBIBYTE}`, disk, `${size}M`),
  });
}
