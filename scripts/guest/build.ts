/**
 * Builds a small Linux guest that boots in seconds: Debian's kernel, busybox
 * and the QEMU guest agent, in a bootable QCOW2 of about 15 MB. The tests run
 * in it, and it is a starting point for an image of your own:
 *
 *     deno run -A scripts/guest/build.ts dist/image.qcow2
 *     deno run -A scripts/guest/build.ts --add ./mytool:/usr/bin/mytool dist/image.qcow2
 *
 * It runs on Debian on x86_64, needs no root, and prints the image's path. What
 * it builds is kept in `.cache/guest/`, and the packages it takes in
 * `.cache/tools/`.
 */
import { parseArgs } from "@std/cli/parse-args";
import { dirname, join, resolve } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import { setUpTools } from "../setup.ts";
import { installHint } from "../setup/parts.ts";
import {
  compressToQcow2,
  copyFileInto,
  fatSizeMib,
  FIRST_PARTITION_MIB,
  makeFatPartition,
  makeSparseFile,
  MEBIBYTE,
  partitionDisk,
} from "./_disk.ts";
import { runOrThrow } from "./_programs.ts";
import { guestKey, openGuestStore, readSourceTexts } from "./_store.ts";
import { type AddedFile, buildInitramfs } from "./root.ts";

/** Options of {@linkcode buildGuest}. */
export interface BuildGuestOptions {
  /** Additional kernel arguments. @default {""} */
  append?: string;
  /** Files to add; libraries of programs are added too. @default {[]} */
  add?: AddedFile[];
}

/** `no_timer_check`: on a busy host the kernel takes a late emulated timer for a broken one. */
const KERNEL_ARGS = "console=ttyS0 quiet panic=-1 no_timer_check";
/** Offset of the partition table, in bytes. */
const LOADER_BYTES = 440;

/**
 * Builds the guest unless it exists. Safe to run from several processes at once.
 *
 * Needs `--allow-all`, as it runs many programs.
 *
 * @returns Absolute path of the image. It is kept for later runs: copy it
 * rather than write to it.
 * @throws {ToolsmithError} `failed` when a program is missing or fails.
 */
export async function buildGuest(
  options: BuildGuestOptions = {},
): Promise<string> {
  const { append = "", add = [] } = options;
  const packages = await unpackGuestPackages();
  using store = await openGuestStore("guest");
  const rootKey = await guestKey([
    await Deno.readTextFile(join(packages, "packages")),
    await readSourceTexts(["build.ts", "root.ts", "_disk.ts", "files"]),
    ...await Promise.all(
      add.map(async ({ source, target }) =>
        `${target} ${await guestKey([await Deno.readFile(source)])}`
      ),
    ),
  ]);
  const tree = join(packages, "root");
  const base = await store.directory(
    `base-${rootKey}`,
    (dir) => buildInitramfs({ tree }, add, dir),
    ["vmlinuz", "initrd.gz"],
  );
  const loader = join(tree, "usr/lib/syslinux/mbr/mbr.bin");
  const kernelArgs = `${KERNEL_ARGS} ${append}`.trim();
  const dir = await store.directory(
    `${rootKey}-${await guestKey([append])}`,
    (dir) => buildDisk({ base, loader, kernelArgs }, dir),
    ["guest.qcow2"],
  );
  return join(dir, "guest.qcow2");
}

/** Unpacks the guest's packages and makes sure that qemu-img exists. */
async function unpackGuestPackages(): Promise<string> {
  const { guest, qemuImg } = await setUpTools(["guest", "qemuImg"]);
  if (guest && qemuImg) return resolve(guest, "../..");
  const missing = guest ? "qemuImg" : "guest";
  throw new ToolsmithError("failed", `Cannot build the guest: no ${missing}`, {
    hint: installHint(missing),
  });
}

interface DiskSources {
  /** The directory of the kernel and its initramfs. */
  base: string;
  /** The MBR boot code. */
  loader: string;
  kernelArgs: string;
}

/** Builds a disk with one FAT partition, from which syslinux boots the kernel. */
async function buildDisk(sources: DiskSources, dir: string) {
  const { base, loader, kernelArgs } = sources;
  const config = join(dir, "syslinux.cfg");
  await Deno.writeTextFile(
    config,
    "DEFAULT linux\nPROMPT 0\nLABEL linux\n  KERNEL /vmlinuz\n" +
      `  INITRD /initrd.gz\n  APPEND ${kernelArgs}\n`,
  );
  const files = [join(base, "vmlinuz"), join(base, "initrd.gz"), config];
  const size = fatSizeMib(files);
  const part = await makeFatPartition(join(dir, "part.img"), size);
  await runOrThrow("mcopy", { args: ["-i", part, ...files, "::/"] });
  await runOrThrow("syslinux", { args: ["--install", part] });

  const disk = await makeSparseFile(
    join(dir, "disk.img"),
    FIRST_PARTITION_MIB + size,
  );
  await partitionDisk(disk, "dos", [{ type: "e", size, bootable: true }]);
  const code = await Deno.readFile(loader);
  await copyFileInto(disk, 0, code.subarray(0, LOADER_BYTES));
  await copyFileInto(
    disk,
    FIRST_PARTITION_MIB * MEBIBYTE,
    await Deno.readFile(part),
  );
  await compressToQcow2(disk, join(dir, "guest.qcow2"));
}

const USAGE =
  "scripts/guest/build.ts [--add FILE[:/PATH/IN/GUEST]]… [--append KERNEL_ARGS] [OUT.qcow2]";

function parseAddedFile(text: string): AddedFile {
  const [source, ...rest] = text.split(":");
  const path = rest.join(":") || `/usr/bin/${source.split("/").at(-1)}`;
  if (!path.startsWith("/")) throw usageError(`not an absolute path: ${path}`);
  if (!isFile(source)) throw usageError(`not a file: ${source}`);
  return { source: resolve(source), target: path };
}

async function main(args: string[]): Promise<number> {
  const { add, append, _: [target, ...more] } = parseArgs(args, {
    string: ["add", "append", "_"],
    collect: ["add"],
    unknown: (_: string, name?: string) => {
      if (name !== undefined) throw usageError(`unknown flag --${name}`);
    },
  }) as { add: string[]; append?: string; _: string[] };
  if (more.length > 0) throw usageError("");
  const image = await buildGuest({ add: add.map(parseAddedFile), append });
  if (target !== undefined) {
    await Deno.mkdir(dirname(resolve(target)), { recursive: true });
    await Deno.copyFile(image, target);
  }
  console.log(target === undefined ? image : resolve(target));
  return 0;
}

function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

function usageError(message: string): ToolsmithError {
  return new ToolsmithError("usage", message);
}

if (import.meta.main) {
  try {
    Deno.exitCode = await main(Deno.args);
  } catch (error) {
    if (!(error instanceof ToolsmithError)) throw error;
    if (error.message) console.error(`Error: ${error.message}`);
    const hint = error.code === "usage" ? USAGE : error.hint;
    if (hint) console.error(hint);
    Deno.exitCode = error.exitStatus;
  }
}
