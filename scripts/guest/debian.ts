/**
 * Builds guests of Debian 12, which are to Toolsmith what its users have: with
 * systemd and a guest agent, or as a cloud offers them, or for arm64.
 *
 *     deno run -A scripts/guest/debian.ts agent
 *     deno run -A scripts/guest/debian.ts cloud-uefi dist/image.qcow2
 *
 * It needs root on Debian or Ubuntu on x86_64, and prints the image's path. What
 * it builds is kept in `.cache/guest/`. No loop device and no mount is left or
 * needed.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { dirname, join, resolve } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import { arm64Disk, biosDisk, efiDisk } from "./_grub.ts";
import { installedVersions, keyOf, openStore, textOf } from "./_store.ts";
import { makeTree, offeredVersions } from "./_tree.ts";
import { buildRoot } from "./root.ts";

/** Which guest. */
export type DebianKind = keyof typeof KINDS;

/** How guests of one or more kinds are built, out of one tree. */
interface Recipe {
  /** Debian packages. */
  packages: string[];
  /** The host's packages that end up in the images. */
  loaders: string[];
  /** The files of `scripts/guest/` that decide what comes out. */
  files: string[];
  /** Writes the images. */
  build: (dir: string, packages: string[]) => Promise<void>;
  /** Their names. */
  images: string[];
}

const COMMON = ["debian.ts", "_disk.ts", "_grub.ts", "_tree.ts"];
const BASE = ["systemd-sysv", "udev", "dbus", "iproute2"];

/** What Debian's cloud images have of its installer's work. */
const FSTAB = "LABEL=root / ext4 defaults 0 1\n";

/** An address for a card that is plugged in later. */
const DHCP = "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n";

const AGENT: Recipe = {
  packages: [
    ...BASE,
    ...["linux-image-amd64", "qemu-guest-agent", "python3", "git"],
  ],
  loaders: ["grub-pc-bin"],
  files: COMMON,
  images: ["agent.qcow2"],
  async build(dir, packages) {
    const tree = join(dir, "tree");
    await makeTree({ dir: tree, packages });
    await configure(tree, { "etc/systemd/network/wired.network": DHCP });
    const service = "systemd-networkd.service";
    await Deno.symlink(
      `/lib/systemd/system/${service}`,
      join(tree, `etc/systemd/system/multi-user.target.wants/${service}`),
    );
    await biosDisk(tree, { dir, image: "agent.qcow2" });
  },
};

const CLOUD: Recipe = {
  packages: [
    ...BASE,
    ...["linux-image-cloud-amd64", "cloud-init", "ca-certificates"],
    ...["ifupdown", "isc-dhcp-client"],
  ],
  loaders: ["grub-pc-bin", "grub-efi-amd64-bin"],
  files: COMMON,
  images: ["cloud.qcow2", "cloud-uefi.qcow2"],
  async build(dir, packages) {
    const tree = join(dir, "tree");
    await makeTree({ dir: tree, packages });
    await configure(tree, {
      "etc/cloud/cloud.cfg.d/90_datasources.cfg":
        "datasource_list: [ NoCloud, None ]\n",
    });
    await biosDisk(tree, { dir, image: "cloud.qcow2" });
    await efiDisk(tree, { dir, image: "cloud-uefi.qcow2" });
  },
};

const ARM64: Recipe = {
  packages: [
    ...["linux-image-arm64", "busybox-static", "qemu-guest-agent"],
    "grub-efi-arm64-bin",
  ],
  loaders: [],
  files: [...COMMON, "root.ts", "files"],
  images: ["arm64.qcow2"],
  async build(dir, packages) {
    const tree = join(dir, "tree");
    await makeTree({ dir: tree, packages, foreign: "arm64" });
    await buildRoot({ tree, foreign: true, console: "ttyAMA0" }, [], dir);
    await arm64Disk([join(dir, "vmlinuz"), join(dir, "initrd.gz")], {
      dir,
      image: "arm64.qcow2",
      grubParts: join(tree, "usr/lib/grub/arm64-efi"),
    });
  },
};

const KINDS = {
  /** systemd, the usual kernel, guest agent, python3 and git; BIOS. */
  agent: AGENT,
  /** The cloud kernel and cloud-init, no guest agent; BIOS. */
  cloud: CLOUD,
  /** The same, which UEFI alone boots. */
  "cloud-uefi": CLOUD,
  /** The small guest of `build.ts`, for arm64; UEFI. */
  arm64: ARM64,
};

/**
 * Builds a guest, or finds it built already. Safe to run at the same time from
 * several processes.
 *
 * Needs `--allow-all`, as it runs many programs; and root.
 *
 * @param kind Which guest.
 * @returns Absolute path of the image. It is kept for later runs: copy it
 * rather than write to it.
 * @throws {ToolsmithError} `failed` when a program is missing or fails, or
 * without root.
 */
export async function buildDebian(kind: DebianKind): Promise<string> {
  const { packages, loaders, files, images, build } = KINDS[kind];
  // The kinds of one recipe are built, and kept, together.
  const name = images[0].replace(".qcow2", "");
  using store = await openStore(name);
  const key = await keyOf([
    await textOf(files),
    await offeredVersions(packages),
    await installedVersions(["grub-common", ...loaders]),
  ]);
  const dir = await store.directory(`${name}-${key}`, async (staging) => {
    if (Deno.uid() !== 0) {
      throw new ToolsmithError("failed", "Only root can build Debian guests");
    }
    console.error(`building the guest ${name}, which takes some minutes`);
    await build(staging, packages);
  }, images);
  return join(dir, `${kind}.qcow2`);
}

/** Writes what the packages leave to an installer. */
async function configure(tree: string, files: Record<string, string>) {
  const all = {
    "etc/fstab": FSTAB,
    "etc/hostname": "debian\n",
    // Empty: each machine makes one of its own, without a first boot's work.
    "etc/machine-id": "",
    ...files,
  };
  for (const [name, text] of Object.entries(all)) {
    await Deno.writeTextFile(join(tree, name), text);
  }
}

async function main(args: string[]): Promise<number> {
  const { _: [kind, target, ...more] } = parseArgs(args, {
    string: ["_"],
    unknown: (_: string, name?: string) => {
      if (name !== undefined) throw usage(`there is no option --${name}`);
    },
  }) as { _: string[] };
  if (!isKind(kind) || more.length > 0) throw usage("");
  const image = await buildDebian(kind);
  if (target !== undefined) {
    await Deno.mkdir(dirname(resolve(target)), { recursive: true });
    await Deno.copyFile(image, target);
  }
  console.log(target === undefined ? image : resolve(target));
  return 0;
}

function isKind(kind: string | undefined): kind is DebianKind {
  return Object.keys(KINDS).some((name) => name === kind);
}

function usage(message: string): ToolsmithError {
  return new ToolsmithError("usage", message, {
    hint: `debian.ts ${Object.keys(KINDS).join("|")} [OUT.qcow2]`,
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
