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
import { parseArgs } from "@std/cli/parse-args";
import { dirname, join, resolve } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import { lock } from "../../lib/system/lock.ts";
import { type AddedFile, buildRoot, kernelPackage, must } from "./root.ts";

/** What {@linkcode buildGuest} takes. */
export interface BuildGuestOptions {
  /** More arguments for the kernel. @default {""} */
  append?: string;
  /** Files to add; programs bring their libraries. @default {[]} */
  add?: AddedFile[];
}

const ROOT = resolve(import.meta.dirname!, "../..");
const STORE = join(ROOT, ".cache", "guest");
const KERNEL_ARGS = "console=ttyS0 quiet panic=-1";
const SECTOR = 512;
const FIRST_SECTOR = 2048;

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
  await Deno.mkdir(STORE, { recursive: true });
  using _lock = await lock(join(STORE, ".lock"), {
    onWait: () => console.error("waiting for another build of the guest"),
  });
  const kernel = await kernelPackage();
  const rootKey = await digest([
    kernel.name,
    kernel.version,
    await sources(),
    ...await Promise.all(
      add.map(async ({ source, target }) =>
        `${target} ${await digest([await Deno.readFile(source)])}`
      ),
    ),
  ]);
  const base = await built(`base-${rootKey}`, (dir) => {
    console.error("building the guest: its kernel is downloaded first");
    return buildRoot(kernel, add, dir);
  }, ["vmlinuz", "initrd.gz"]);
  const dir = await built(
    `${rootKey}-${await digest([append])}`,
    (dir) => buildDisk(base, `${KERNEL_ARGS} ${append}`.trim(), dir),
    ["guest.qcow2"],
  );
  return join(dir, "guest.qcow2");
}

/** Builds a directory of the store unless it is there; keeps only some files. */
async function built(
  name: string,
  build: (staging: string) => Promise<void>,
  keep: string[],
): Promise<string> {
  const dir = join(STORE, name);
  if (await exists(dir)) return dir;
  // Under the lock, so what lies here was left by a build that was cut off.
  const staging = join(STORE, ".staging");
  await remove(staging);
  await Deno.mkdir(staging);
  try {
    await build(staging);
    for (const entry of Deno.readDirSync(staging)) {
      if (!keep.includes(entry.name)) await remove(join(staging, entry.name));
    }
    await Deno.rename(staging, dir);
  } finally {
    await remove(staging);
  }
  return dir;
}

/** A disk with one FAT partition, which syslinux boots the kernel from. */
async function buildDisk(base: string, kernelArgs: string, dir: string) {
  const kernel = join(base, "vmlinuz");
  const initrd = join(base, "initrd.gz");
  const payload = (await Deno.stat(kernel)).size +
    (await Deno.stat(initrd)).size;
  // FAT16 needs some 4,100 clusters, and files grow when a user adds some.
  const mebibytes = Math.max(16, Math.ceil(payload * 1.1 / 2 ** 20) + 4);
  const part = join(dir, "part.img");
  const config = join(dir, "syslinux.cfg");
  await Deno.writeTextFile(
    config,
    "DEFAULT linux\nPROMPT 0\nLABEL linux\n  KERNEL /vmlinuz\n" +
      `  INITRD /initrd.gz\n  APPEND ${kernelArgs}\n`,
  );
  await Deno.truncate(await empty(part), mebibytes * 2 ** 20);
  const fat = ["-F", "16", "-h", `${FIRST_SECTOR}`, "--invariant"];
  await must("mkfs.vfat", { args: [...fat, part], env: sbin() });
  const files = [kernel, initrd, config];
  await must("mcopy", { args: ["-i", part, ...files, "::/"] });
  await must("syslinux", { args: ["--install", part] });

  const disk = join(dir, "disk.img");
  const sectors = mebibytes * 2 ** 20 / SECTOR;
  await Deno.truncate(await empty(disk), (FIRST_SECTOR + sectors) * SECTOR);
  await must("sfdisk", {
    args: ["--quiet", disk],
    input: `label: dos\nlabel-id: 0x746f6f6c\n${FIRST_SECTOR},${sectors},e,*\n`,
    env: sbin(),
  });
  const loader = (await Deno.readFile("/usr/lib/syslinux/mbr/mbr.bin"))
    .subarray(0, 440);
  await splice(disk, 0, loader);
  await splice(disk, FIRST_SECTOR * SECTOR, await Deno.readFile(part));
  const image = join(dir, "guest.qcow2");
  await must("qemu-img", {
    args: ["convert", "-q", "-c", "-O", "qcow2", disk, image],
  });
}

/** All that decides what a guest is made of, besides the kernel. */
async function sources(): Promise<string> {
  const own = [import.meta.filename!, `${import.meta.dirname}/root.ts`];
  for (const entry of Deno.readDirSync(`${import.meta.dirname}/files`)) {
    own.push(`${import.meta.dirname}/files/${entry.name}`);
  }
  const texts = await Promise.all(
    own.sort().map((path) => Deno.readTextFile(path)),
  );
  const packages = ["busybox-static", "qemu-guest-agent", "syslinux"];
  const { stdout } = await must("dpkg-query", {
    args: ["-W", "-f", "${Package} ${Version}\n", ...packages],
  });
  return [...texts, stdout].join("\0");
}

async function digest(parts: (string | Uint8Array<ArrayBuffer>)[]) {
  const bytes = await new Blob(parts.flatMap((part) => [part, "\0"])).bytes();
  const hash = await crypto.subtle.digest("SHA-256", bytes);
  return Array.from(
    new Uint8Array(hash, 0, 6),
    (byte) => byte.toString(16).padStart(2, "0"),
  ).join("");
}

async function splice(path: string, offset: number, bytes: Uint8Array) {
  using file = await Deno.open(path, { write: true });
  await file.seek(offset, Deno.SeekMode.Start);
  for (let done = 0; done < bytes.length;) {
    done += await file.write(bytes.subarray(done));
  }
}

async function empty(path: string): Promise<string> {
  await Deno.writeFile(path, new Uint8Array());
  return path;
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

async function remove(path: string) {
  await Deno.remove(path, { recursive: true }).catch(() => {});
}

/** Where some of the programs are that an ordinary user's PATH leaves out. */
function sbin(): Record<string, string> {
  return { PATH: `${Deno.env.get("PATH")}:/usr/sbin:/sbin` };
}

async function main(args: string[]): Promise<number> {
  const given = parseArgs(args, {
    string: ["_", "add", "append"],
    collect: ["add"],
    boolean: ["help"],
    unknown: (_: string, name?: string) => {
      if (name !== undefined) throw usage(`there is no option --${name}`);
    },
  });
  const [target, ...more] = given._ as string[];
  if (given.help || more.length > 0) throw usage("");
  const add = (given.add as string[]).map((text): AddedFile => {
    const [source, ...rest] = text.split(":");
    const path = rest.join(":") || `/usr/bin/${source.split("/").at(-1)}`;
    if (!path.startsWith("/")) throw usage(`not an absolute path: ${path}`);
    if (!isFile(source)) throw usage(`not a file: ${source}`);
    return { source: resolve(source), target: path };
  });
  const image = await buildGuest({ append: given.append, add });
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
  return new ToolsmithError("usage", message, {
    hint:
      "build_guest.ts [--add FILE[:/PATH/IN/GUEST]]… [--append KERNEL_ARGS] [OUT.qcow2]",
  });
}

if (import.meta.main) {
  try {
    Deno.exitCode = await main(Deno.args);
  } catch (error) {
    if (!(error instanceof ToolsmithError)) throw error;
    if (error.message) console.error(`Error: ${error.message}`);
    if (error.hint) console.error(error.hint);
    Deno.exitCode = error.exitStatus;
  }
}
