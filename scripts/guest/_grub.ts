/** Disks that GRUB boots, by BIOS or by UEFI. */
import { join } from "@std/path";
import {
  compressToQcow2,
  copyFileInto,
  fatSizeMib,
  FIRST_PARTITION_MIB,
  makeFatPartition,
  makeSparseFile,
  MEBIBYTE,
  partitionDisk,
  SECTOR,
} from "./_disk.ts";
import { runOrThrow } from "./_programs.ts";

/** Where a disk is written. */
export interface DiskOptions {
  /** Directory for temporary files and the image. */
  dir: string;
  /** The image's file name. */
  image: string;
}

/** Arguments of `grub-mkimage`. */
interface GrubImageOptions {
  /** GRUB's name of the target platform. */
  format: "i386-pc" | "x86_64-efi" | "arm64-efi";
  /** The embedded script, which needs no input. */
  config: string;
  /** Modules to include; their dependencies follow. */
  modules: string[];
  /** Directory of the modules. @default {"/usr/lib/grub/<format>"} */
  parts?: string;
}

/** Size of a disk with a root file system, in MiB. */
const DISK_MIB = 2048;
/** Size of the EFI system partition, in MiB. */
const ESP_MIB = 16;
/** Boot code in the first sector; the partition table follows. */
const LOADER_BYTES = 440;

/** GRUB script: finds the root file system by its label. */
const START_ROOT = `search.fs_label root root
linux /vmlinuz root=LABEL=root ro console=ttyS0 quiet
initrd /initrd.img
boot
`;

/** GRUB script: the kernel is in the EFI system partition. */
const START_ESP = `search.file /initrd.gz root
linux /vmlinuz console=ttyAMA0 quiet panic=-1
initrd /initrd.gz
boot
`;

/**
 * Builds a BIOS-bootable disk from a directory tree with a kernel: an MBR, GRUB before
 * the first partition, and an ext4 file system labelled `root`.
 *
 * Needs `--allow-run`, `--allow-read`, `--allow-write`.
 *
 * @param tree The files, with their owners.
 * @param options Where to write.
 */
export async function buildBiosDisk(
  tree: string,
  options: DiskOptions,
): Promise<void> {
  const disk = await makeSparseFile(join(options.dir, "disk.raw"), DISK_MIB);
  await partitionDisk(disk, "dos", [{ type: "83", bootable: true }]);
  const core = await makeGrubImage(options.dir, {
    format: "i386-pc",
    config: START_ROOT,
    modules: ["biosdisk", "part_msdos", "ext2", "search_label", "linux"],
  });
  const boot = await Deno.readFile("/usr/lib/grub/i386-pc/boot.img");
  await copyFileInto(disk, 0, boot.subarray(0, LOADER_BYTES));
  // GRUB's first sector loads the rest from the sectors that follow it.
  await copyFileInto(disk, SECTOR, await Deno.readFile(core));
  await writeRootFileSystem(disk, tree, FIRST_PARTITION_MIB);
  await compressToQcow2(disk, join(options.dir, options.image));
}

/**
 * Builds a UEFI-bootable disk from a directory tree with a kernel: a GPT, an EFI system
 * partition with GRUB, and an ext4 file system labelled `root`.
 *
 * Needs `--allow-run`, `--allow-read`, `--allow-write`.
 *
 * @param tree The files, with their owners.
 * @param options Where to write.
 */
export async function buildEfiDisk(
  tree: string,
  options: DiskOptions,
): Promise<void> {
  const disk = await makeSparseFile(join(options.dir, "disk.raw"), DISK_MIB);
  await partitionDisk(disk, "gpt", [
    { type: "uefi", size: ESP_MIB },
    { type: "linux" },
  ]);
  const program = await makeGrubImage(options.dir, {
    format: "x86_64-efi",
    config: START_ROOT,
    modules: ["part_gpt", "ext2", "search_label", "linux"],
  });
  const esp = await makeFatPartition(join(options.dir, "esp.img"), ESP_MIB);
  await copyIntoEsp(esp, program, "BOOTX64.EFI");
  await copyFileInto(
    disk,
    FIRST_PARTITION_MIB * MEBIBYTE,
    await Deno.readFile(esp),
  );
  await writeRootFileSystem(disk, tree, FIRST_PARTITION_MIB + ESP_MIB);
  await compressToQcow2(disk, join(options.dir, options.image));
}

/**
 * Builds a UEFI-bootable disk for arm64: a GPT with an EFI system partition that holds
 * GRUB, the kernel and its initramfs.
 *
 * Needs `--allow-run`, `--allow-read`, `--allow-write`.
 *
 * @param files The kernel, `vmlinuz`, and its initramfs, `initrd.gz`.
 * @param options Where to write, and where GRUB's arm64 modules are.
 */
export async function buildArm64Disk(
  files: string[],
  options: DiskOptions & { grubParts: string },
): Promise<void> {
  const program = await makeGrubImage(options.dir, {
    format: "arm64-efi",
    config: START_ESP,
    modules: ["part_gpt", "fat", "search_fs_file", "linux"],
    parts: options.grubParts,
  });
  const size = fatSizeMib([program, ...files]);
  const disk = await makeSparseFile(
    join(options.dir, "disk.raw"),
    FIRST_PARTITION_MIB + size + 1,
  );
  await partitionDisk(disk, "gpt", [{ type: "uefi", size }]);
  const esp = await makeFatPartition(join(options.dir, "esp.img"), size);
  await copyIntoEsp(esp, program, "BOOTAA64.EFI");
  await runOrThrow("mcopy", { args: ["-i", esp, ...files, "::/"] });
  await copyFileInto(
    disk,
    FIRST_PARTITION_MIB * MEBIBYTE,
    await Deno.readFile(esp),
  );
  await compressToQcow2(disk, join(options.dir, options.image));
}

async function makeGrubImage(
  dir: string,
  options: GrubImageOptions,
): Promise<string> {
  const { format, config, modules } = options;
  const { parts = `/usr/lib/grub/${format}` } = options;
  const [image, script] = [join(dir, "grub"), join(dir, "grub.cfg")];
  await Deno.writeTextFile(script, config);
  await runOrThrow("grub-mkimage", {
    args: ["-O", format, "-d", parts, "-p", "/", "-c", script, "-o", image]
      .concat(modules),
  });
  return image;
}

async function copyIntoEsp(esp: string, program: string, name: string) {
  await runOrThrow("mmd", { args: ["-i", esp, "::/EFI", "::/EFI/BOOT"] });
  await runOrThrow("mcopy", {
    args: ["-i", esp, program, `::/EFI/BOOT/${name}`],
  });
}

/** Fills the rest of a disk except its last MiB, which holds the backup GPT. */
async function writeRootFileSystem(disk: string, tree: string, start: number) {
  const size = DISK_MIB - start - 1;
  await runOrThrow("mke2fs", {
    args: ["-q", "-t", "ext4", "-L", "root", "-d", tree, "-E"]
      .concat(`offset=${start * MEBIBYTE}`, disk, `${size}M`),
  });
}
