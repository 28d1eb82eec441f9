/**
 * Builds a small Linux guest that boots in seconds: Debian's kernel, busybox
 * and the QEMU guest agent, in a bootable QCOW2 of about 15 MB. The tests run
 * in it, and it is a starting point for an image of your own:
 *
 *     deno run -A scripts/guest/build.ts dist/image.qcow2
 *     deno run -A scripts/guest/build.ts --add ./mytool:/usr/bin/mytool dist/image.qcow2
 *
 * It runs on Debian or Ubuntu on x86_64, needs no root, and prints the image's
 * path. What it builds is kept in `.cache/guest/`.
 *
 * @module
 */
import { dirname, join, resolve } from "@std/path";
import { ParsedFlags } from "../../lib/cli/flag_values.ts";
import type { CommandSpec } from "../../lib/cli/spec.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  compress,
  emptyFile,
  fatPartition,
  fatSize,
  FIRST_MEBIBYTE,
  MEBIBYTE,
  partition,
  splice,
} from "./_disk.ts";
import { must } from "./_programs.ts";
import { installedVersions, keyOf, openStore, textOf } from "./_store.ts";
import {
  type AddedFile,
  buildRoot,
  kernelPackage,
  unpackKernel,
} from "./root.ts";

/** What {@linkcode buildGuest} takes. */
export interface BuildGuestOptions {
  /** More arguments for the kernel. @default {""} */
  append?: string;
  /** Files to add; programs bring their libraries. @default {[]} */
  add?: AddedFile[];
}

const KERNEL_ARGS = "console=ttyS0 quiet panic=-1";
/** Where the partition table begins, in bytes. */
const LOADER_BYTES = 440;

/**
 * Builds the guest, or finds it built already. Safe to run at the same time
 * from several processes.
 *
 * Needs `--allow-all`, as it runs many programs.
 *
 * @param options What differs from the usual guest.
 * @returns Absolute path of the image. It is kept for later runs: copy it
 * rather than write to it.
 * @throws {ToolsmithError} `failed` when a program is missing or fails.
 */
export async function buildGuest(
  options: BuildGuestOptions = {},
): Promise<string> {
  const { append = "", add = [] } = options;
  using store = await openStore("guest");
  const kernel = await kernelPackage();
  const rootKey = await keyOf([
    kernel.name,
    kernel.version,
    await textOf(["build.ts", "root.ts", "_disk.ts", "files"]),
    await installedVersions(["busybox-static", "qemu-guest-agent", "syslinux"]),
    ...await Promise.all(
      add.map(async ({ source, target }) =>
        `${target} ${await keyOf([await Deno.readFile(source)])}`
      ),
    ),
  ]);
  const base = await store.directory(`base-${rootKey}`, async (dir) => {
    console.error("building the guest: its kernel is downloaded first");
    const sources = { kernel: await unpackKernel(kernel.name, dir) };
    await buildRoot(sources, add, dir);
  }, ["vmlinuz", "initrd.gz"]);
  const dir = await store.directory(
    `${rootKey}-${await keyOf([append])}`,
    (dir) => buildDisk(base, `${KERNEL_ARGS} ${append}`.trim(), dir),
    ["guest.qcow2"],
  );
  return join(dir, "guest.qcow2");
}

/** A disk with one FAT partition, which syslinux boots the kernel from. */
async function buildDisk(base: string, kernelArgs: string, dir: string) {
  const config = join(dir, "syslinux.cfg");
  await Deno.writeTextFile(
    config,
    "DEFAULT linux\nPROMPT 0\nLABEL linux\n  KERNEL /vmlinuz\n" +
      `  INITRD /initrd.gz\n  APPEND ${kernelArgs}\n`,
  );
  const files = [join(base, "vmlinuz"), join(base, "initrd.gz"), config];
  const size = fatSize(files);
  const part = await fatPartition(join(dir, "part.img"), size);
  await must("mcopy", { args: ["-i", part, ...files, "::/"] });
  await must("syslinux", { args: ["--install", part] });

  const disk = await emptyFile(join(dir, "disk.img"), FIRST_MEBIBYTE + size);
  await partition(disk, "dos", [{ type: "e", size, bootable: true }]);
  const loader = await Deno.readFile("/usr/lib/syslinux/mbr/mbr.bin");
  await splice(disk, 0, loader.subarray(0, LOADER_BYTES));
  await splice(disk, FIRST_MEBIBYTE * MEBIBYTE, await Deno.readFile(part));
  await compress(disk, join(dir, "guest.qcow2"));
}

const SPEC: CommandSpec = {
  name: "build.ts",
  usage: "[--add FILE[:/PATH/IN/GUEST]]… [--append KERNEL_ARGS] [OUT.qcow2]",
  summary: "build the test guest",
  flags: [
    {
      name: "add",
      value: "FILE[:/PATH/IN/GUEST]",
      many: true,
      help: "a program to put into it, with what it needs",
    },
    { name: "append", value: "KERNEL_ARGS", help: "more for the kernel" },
  ],
  positionals: [0, 1],
};

async function main(args: string[]): Promise<number> {
  const given = new ParsedFlags(SPEC, args);
  const [target, ...more] = given.positionals;
  if (given.has("help") || more.length > 0) throw usage("");
  const add = given.texts("add").map((text): AddedFile => {
    const [source, ...rest] = text.split(":");
    const path = rest.join(":") || `/usr/bin/${source.split("/").at(-1)}`;
    if (!path.startsWith("/")) throw usage(`not an absolute path: ${path}`);
    if (!isFile(source)) throw usage(`not a file: ${source}`);
    return { source: resolve(source), target: path };
  });
  const image = await buildGuest({ append: given.text("append"), add });
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

function usage(message: string): ToolsmithError {
  return new ToolsmithError("usage", message);
}

if (import.meta.main) {
  try {
    Deno.exitCode = await main(Deno.args);
  } catch (error) {
    if (!(error instanceof ToolsmithError)) throw error;
    if (error.message) console.error(`Error: ${error.message}`);
    const usage = error.code === "usage";
    const hint = usage ? `scripts/guest/build.ts ${SPEC.usage}` : error.hint;
    if (hint) console.error(hint);
    Deno.exitCode = error.exitStatus;
  }
}
