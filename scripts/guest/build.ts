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
 *
 * @module
 */
import { dirname, join, resolve } from "@std/path";
import { ParsedFlags } from "../../lib/cli/flag_values.ts";
import type { CommandSpec } from "../../lib/cli/spec.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import { setup } from "../setup.ts";
import { remedyOf } from "../setup/parts.ts";
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
import { keyOf, openStore, textOf } from "./_store.ts";
import { type AddedFile, buildRoot } from "./root.ts";

/** What {@linkcode buildGuest} takes. */
export interface BuildGuestOptions {
  /** More arguments for the kernel. @default {""} */
  append?: string;
  /** Files to add; programs bring their libraries. @default {[]} */
  add?: AddedFile[];
}

/** On a busy host an emulated timer is late, which the kernel takes for a broken one. */
const KERNEL_ARGS = "console=ttyS0 quiet panic=-1 no_timer_check";
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
  const packages = await unpackedPackages();
  using store = await openStore("guest");
  const rootKey = await keyOf([
    await Deno.readTextFile(join(packages, "packages")),
    await textOf(["build.ts", "root.ts", "_disk.ts", "files"]),
    ...await Promise.all(
      add.map(async ({ source, target }) =>
        `${target} ${await keyOf([await Deno.readFile(source)])}`
      ),
    ),
  ]);
  const tree = join(packages, "root");
  const base = await store.directory(
    `base-${rootKey}`,
    (dir) => buildRoot({ tree }, add, dir),
    ["vmlinuz", "initrd.gz"],
  );
  const loader = join(tree, "usr/lib/syslinux/mbr/mbr.bin");
  const kernelArgs = `${KERNEL_ARGS} ${append}`.trim();
  const dir = await store.directory(
    `${rootKey}-${await keyOf([append])}`,
    (dir) => buildDisk({ base, loader, kernelArgs }, dir),
    ["guest.qcow2"],
  );
  return join(dir, "guest.qcow2");
}

/** Brings the packages, and QEMU's tool for images. */
async function unpackedPackages(): Promise<string> {
  const { guest, qemuImg } = await setup(["guest", "qemuImg"]);
  if (guest && qemuImg) return resolve(guest, "../..");
  const missing = guest ? "qemuImg" : "guest";
  throw new ToolsmithError("failed", `Cannot build the guest: no ${missing}`, {
    hint: remedyOf(missing),
  });
}

interface DiskSources {
  /** The directory of the kernel and its memory disk. */
  base: string;
  /** The code that a BIOS starts. */
  loader: string;
  kernelArgs: string;
}

/** A disk with one FAT partition, which syslinux boots the kernel from. */
async function buildDisk(sources: DiskSources, dir: string) {
  const { base, loader, kernelArgs } = sources;
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
  const code = await Deno.readFile(loader);
  await splice(disk, 0, code.subarray(0, LOADER_BYTES));
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
