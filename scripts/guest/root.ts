/**
 * Puts together what the guest's memory disk holds: busybox, the guest agent,
 * the kernel's drivers, and the files of `scripts/guest/files/`.
 *
 * @module
 */
import { basename, dirname, join } from "@std/path";
import { run } from "../../lib/system/process.ts";
import { libraryDirs } from "../setup/unpack.ts";
import { must } from "./_programs.ts";

/** What the guest consists of. */
export interface RootSources {
  /** A tree of packages: the kernel and its drivers, busybox, the guest agent. */
  tree: string;
  /** The tree is of an architecture that this host cannot run. @default {false} */
  foreign?: boolean;
  /** The serial console. @default {"ttyS0"} */
  console?: string;
}

/** A file of this machine that the guest gets. */
export interface AddedFile {
  /** Its path here. */
  source: string;
  /** Its absolute path in the guest. */
  target: string;
}

/** The drivers, each brought with those that it depends on. */
const MODULES = [
  "virtio_pci",
  "virtio_blk",
  "virtio_console",
  "virtio_net",
  "virtio_rng",
  "9p",
  "9pnet_virtio",
  "button",
  "evdev",
];

/** Files of `scripts/guest/files/`, and their places. */
const FILES: Record<string, string> = {
  init: "init",
  inittab: "etc/inittab",
  agent: "etc/agent",
  network: "etc/network",
  lease: "etc/lease",
  power_button: "etc/acpi/PWRF/00000080",
  shutdown: "sbin/shutdown",
};

const DIRS = [
  "bin",
  "sbin",
  "usr/bin",
  "usr/sbin",
  "proc",
  "sys",
  "dev",
  "run",
  "tmp",
  "mnt",
  "root",
  "etc/acpi/PWRF",
  "lib/modules",
];

/**
 * Writes `vmlinuz` and `initrd.gz`.
 *
 * Needs `--allow-run`, `--allow-read`, `--allow-write`.
 *
 * @param sources What to take; lists of the drivers are written into the tree.
 * @param added Files besides those that every guest has.
 * @param dir Where to write; other files in it are left behind.
 */
export async function buildRoot(
  sources: RootSources,
  added: AddedFile[],
  dir: string,
): Promise<void> {
  const { tree, foreign = false, console = "ttyS0" } = sources;
  const boot = join(tree, "boot");
  const [image] = names(boot).filter((name) => name.startsWith("vmlinuz-"));
  await Deno.copyFile(join(boot, image), join(dir, "vmlinuz"));

  const root = join(dir, "root");
  for (const name of DIRS) {
    await Deno.mkdir(join(root, name), { recursive: true });
  }
  await addModules(tree, image.slice("vmlinuz-".length), root);
  await addBusybox(root, tree);
  const agent = "usr/sbin/qemu-ga";
  if (foreign) await addForeign(root, tree, agent);
  else await add(root, join(tree, agent), `/${agent}`, tree);
  for (const [name, target] of Object.entries(FILES)) {
    const place = join(root, target);
    const text = await Deno.readTextFile(
      `${import.meta.dirname}/files/${name}`,
    );
    await Deno.writeTextFile(place, text.replaceAll("ttyS0", console));
    await Deno.chmod(place, 0o755);
  }
  await Deno.writeTextFile(
    join(root, "etc/passwd"),
    "root::0:0:root:/root:/bin/sh\n",
  );
  await Deno.writeTextFile(join(root, "etc/group"), "root:x:0:\n");
  for (const { source, target } of added) {
    await add(root, source, target, tree);
  }
  await pack(root, join(dir, "initrd.gz"));
}

/** The drivers in one directory, and a list in the order of their loading. */
async function addModules(tree: string, release: string, root: string) {
  await must("depmod", { args: ["-b", tree, release] });
  const order: string[] = [];
  for (const module of MODULES) {
    const args = ["-d", tree, "-S", release, "--show-depends", module];
    const { stdout } = await must("modprobe", { args });
    for (const [, path] of stdout.matchAll(/^insmod (\S+)/gm)) {
      if (order.includes(basename(path))) continue;
      order.push(basename(path));
      await Deno.copyFile(path, join(root, "lib/modules", basename(path)));
    }
  }
  const list = order.map((name) => `${name}\n`).join("");
  await Deno.writeTextFile(join(root, "lib/modules/order"), list);
}

/** Links are made here rather than at boot, where they would cost a second. */
async function addBusybox(root: string, tree: string) {
  const binary = join(root, "bin/busybox");
  await Deno.copyFile(join(tree, "bin/busybox"), binary);
  await Deno.chmod(binary, 0o755);
  const { stdout } = await must("busybox", { args: ["--list-full"] });
  for (const applet of stdout.trim().split("\n")) {
    await Deno.mkdir(join(root, dirname(applet)), { recursive: true });
    await Deno.symlink("/bin/busybox", join(root, applet)).catch(() => {});
  }
}

/** Copies a file, and the libraries that a program needs: the tree's, or this host's. */
async function add(root: string, source: string, target: string, tree: string) {
  const files = new Map([[target, source]]);
  const dirs = libraryDirs(tree).map((dir) => join(tree, dir));
  // Scripts and static programs make ldd fail, and need nothing else.
  const { stdout } = await run("ldd", {
    args: [source],
    env: { LD_LIBRARY_PATH: dirs.join(":") },
  });
  for (const [, path] of stdout.matchAll(/(?:=>|^)\s+(\/.+) \(0x/gm)) {
    files.set(path.startsWith(tree) ? path.slice(tree.length) : path, path);
  }
  for (const [to, from] of files) {
    const place = join(root, to);
    await Deno.mkdir(dirname(place), { recursive: true });
    await Deno.remove(place).catch(() => {});
    await Deno.copyFile(from, place);
  }
}

/**
 * Copies a program that this host cannot run, and the libraries whose names are
 * in it: `ldd` would have to run it.
 */
async function addForeign(root: string, tree: string, program: string) {
  const { stdout } = await must("find", {
    args: [tree, "-name", "*.so.[0-9]*", "-not", "-type", "d"],
  });
  const libraries = new Map(
    stdout.trim().split("\n").map((path) => [basename(path), path]),
  );
  // The loader looks in /lib after the directories of its architecture.
  const wanted = new Map([[program, join(tree, program)]]);
  for (const [target, source] of wanted) {
    await Deno.copyFile(source, join(root, target));
    const text = new TextDecoder("latin1").decode(await Deno.readFile(source));
    for (const [name] of text.matchAll(/\b[\w+.-]+\.so\.\d+\b/g)) {
      const library = libraries.get(name);
      if (library) wanted.set(`lib/${name}`, library);
    }
  }
}

/** The same files give the same bytes. */
async function pack(root: string, target: string) {
  await must("find", {
    args: [root, "-exec", "touch", "-h", "-d", "@0", "{}", "+"],
  });
  const list = await must("find", { args: [".", "-print0"], cwd: root });
  const sorted = list.stdout.split("\0").filter(Boolean).sort();
  await must("cpio", {
    args: [
      "-o",
      "-H",
      "newc",
      "-0",
      "--reproducible",
      "-R",
      "0:0",
      "-F",
      `${target}.cpio`,
    ],
    input: sorted.map((name) => `${name}\0`).join(""),
    cwd: root,
  });
  await must("gzip", { args: ["-n", "-9", `${target}.cpio`] });
  await Deno.rename(`${target}.cpio.gz`, target);
}

function names(dir: string): string[] {
  return Array.from(Deno.readDirSync(dir), (entry) => entry.name);
}
