/**
 * Builds the guest's initramfs: busybox, the guest agent, kernel modules, and the
 * files of `scripts/guest/files/`.
 */
import { basename, dirname, join } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { libraryDirs } from "../setup/unpack.ts";
import { runOrThrow } from "./_programs.ts";

/** Where the initramfs's files come from. */
export interface InitramfsSources {
  /** A directory tree with kernel, modules, busybox and guest agent. */
  tree: string;
  /** Whether the tree is of a foreign architecture. @default {false} */
  foreign?: boolean;
  /** The serial console. @default {"ttyS0"} */
  console?: string;
}

/** A file of this host to add to the guest. */
export interface AddedFile {
  /** Its path on this host. */
  source: string;
  /** Its absolute path in the guest. */
  target: string;
}

/** Kernel modules; their dependencies are added. */
const DRIVER_MODULES = [
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

/** Files of `scripts/guest/files/` and their paths in the guest. */
const GUEST_FILES: Record<string, string> = {
  init: "init",
  inittab: "etc/inittab",
  agent: "etc/agent",
  network: "etc/network",
  lease: "etc/lease",
  power_button: "etc/acpi/PWRF/00000080",
  shutdown: "sbin/shutdown",
};

const GUEST_DIRS = [
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
 * @param sources Where files come from; module lists are written into the tree.
 * @param added Additional files.
 * @param dir Output directory; temporary files remain in it.
 */
export async function buildInitramfs(
  sources: InitramfsSources,
  added: AddedFile[],
  dir: string,
): Promise<void> {
  const { tree, foreign = false, console = "ttyS0" } = sources;
  const boot = join(tree, "boot");
  const [image] = namesInOrder(boot).filter((name) =>
    name.startsWith("vmlinuz-")
  );
  await Deno.copyFile(join(boot, image), join(dir, "vmlinuz"));

  const root = join(dir, "root");
  for (const name of GUEST_DIRS) {
    await Deno.mkdir(join(root, name), { recursive: true });
  }
  await addModules(tree, image.slice("vmlinuz-".length), root);
  await addBusybox(root, tree);
  const agent = "usr/sbin/qemu-ga";
  if (foreign) await copyForeignLibraries(root, tree, agent);
  else await copyWithLibraries(root, join(tree, agent), `/${agent}`, tree);
  for (const [name, target] of Object.entries(GUEST_FILES)) {
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
    await copyWithLibraries(root, source, target, tree);
  }
  await packInitramfs(root, join(dir, "initrd.gz"));
}

/** Copies the modules to one directory with a list in load order. */
async function addModules(tree: string, release: string, root: string) {
  await runOrThrow("depmod", { args: ["-b", tree, release] });
  const order: string[] = [];
  for (const module of DRIVER_MODULES) {
    const args = ["-d", tree, "-S", release, "--show-depends", module];
    const { stdout } = await runOrThrow("modprobe", { args });
    for (const [, path] of stdout.matchAll(/^insmod (\S+)/gm)) {
      if (order.includes(basename(path))) continue;
      order.push(basename(path));
      await Deno.copyFile(path, join(root, "lib/modules", basename(path)));
    }
  }
  const list = order.map((name) => `${name}\n`).join("");
  await Deno.writeTextFile(join(root, "lib/modules/order"), list);
}

/** Makes busybox's links here, as making them at boot takes a second. */
async function addBusybox(root: string, tree: string) {
  const binary = join(root, "bin/busybox");
  await Deno.copyFile(join(tree, "bin/busybox"), binary);
  await Deno.chmod(binary, 0o755);
  const { stdout } = await runOrThrow("busybox", { args: ["--list-full"] });
  for (const applet of stdout.trim().split("\n")) {
    await Deno.mkdir(join(root, dirname(applet)), { recursive: true });
    await Deno.symlink("/bin/busybox", join(root, applet)).catch(() => {});
  }
}

/** Copies a file with its libraries, from the tree or from this host. */
async function copyWithLibraries(
  root: string,
  source: string,
  target: string,
  tree: string,
) {
  const files = new Map([[target, source]]);
  const dirs = libraryDirs(tree).map((dir) => join(tree, dir));
  // ldd fails for scripts and static programs, which need no libraries.
  const { stdout } = await runProcess("ldd", {
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
 * Copies a foreign program and the libraries whose names occur in it, as `ldd` would
 * have to run the program.
 */
async function copyForeignLibraries(
  root: string,
  tree: string,
  program: string,
) {
  const { stdout } = await runOrThrow("find", {
    args: [tree, "-name", "*.so.[0-9]*", "-not", "-type", "d"],
  });
  const libraries = new Map(
    stdout.trim().split("\n").map((path) => [basename(path), path]),
  );
  // The dynamic loader also searches /lib.
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

/** Packs the initramfs reproducibly. */
async function packInitramfs(root: string, target: string) {
  await runOrThrow("find", {
    args: [root, "-exec", "touch", "-h", "-d", "@0", "{}", "+"],
  });
  const list = await runOrThrow("find", { args: [".", "-print0"], cwd: root });
  const sorted = list.stdout.split("\0").filter(Boolean).sort();
  await runOrThrow("cpio", {
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
  await runOrThrow("gzip", { args: ["-n", "-9", `${target}.cpio`] });
  await Deno.rename(`${target}.cpio.gz`, target);
}

function namesInOrder(dir: string): string[] {
  return Array.from(Deno.readDirSync(dir), (entry) => entry.name);
}
