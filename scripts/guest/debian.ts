/**
 * Builds Debian 12 guests like those of users: with systemd and a guest agent, as cloud
 * images, or for arm64.
 *
 *     deno run -A scripts/guest/debian.ts agent
 *     deno run -A scripts/guest/debian.ts cloud-uefi dist/image.qcow2
 *
 * It needs root on Debian or Ubuntu on x86_64, and prints the image's path. What
 * it builds is kept in `.cache/guest/`. It needs no loop devices or mounts.
 */
import { parseArgs } from "@std/cli/parse-args";
import { dirname, join, resolve } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import { buildArm64Disk, buildBiosDisk, buildEfiDisk } from "./_grub.ts";
import {
  guestKey,
  installedPackageVersions,
  openGuestStore,
  readSourceTexts,
} from "./_store.ts";
import { makeDebianTree, offeredPackageVersions } from "./_tree.ts";
import { buildInitramfs } from "./root.ts";

export type DebianKind = keyof typeof RECIPE_BY_KIND;

/** Builds the guests of one or more kinds from one directory tree. */
interface DebianGuestRecipe {
  /** Debian packages. */
  packages: string[];
  /** Host packages whose files are copied into the images. */
  loaders: string[];
  /** Files of `scripts/guest/` that are part of the guest's key. */
  files: string[];
  build: (dir: string, packages: string[]) => Promise<void>;
  images: string[];
}

const COMMON_SOURCE_FILES = ["debian.ts", "_disk.ts", "_grub.ts", "_tree.ts"];
const BASE_PACKAGES = ["systemd-sysv", "udev", "dbus", "iproute2"];

/** The fstab of Debian's cloud images. */
const FSTAB = "LABEL=root / ext4 defaults 0 1\n";

/** systemd-networkd: DHCP for a hot-plugged network card. */
const DHCP = "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n";

const AGENT_RECIPE: DebianGuestRecipe = {
  packages: [
    ...BASE_PACKAGES,
    ...["linux-image-amd64", "qemu-guest-agent", "python3", "git"],
    ...["curl", "npm", "python3-pip", "python3-websockets"],
  ],
  loaders: ["grub-pc-bin"],
  files: COMMON_SOURCE_FILES,
  images: ["agent.qcow2"],
  async build(dir, packages) {
    const tree = join(dir, "tree");
    await makeDebianTree({ dir: tree, packages });
    await configureTree(tree, { "etc/systemd/network/wired.network": DHCP });
    const service = "systemd-networkd.service";
    await Deno.symlink(
      `/lib/systemd/system/${service}`,
      join(tree, `etc/systemd/system/multi-user.target.wants/${service}`),
    );
    await buildBiosDisk(tree, { dir, image: "agent.qcow2" });
  },
};

const CLOUD_RECIPE: DebianGuestRecipe = {
  packages: [
    ...BASE_PACKAGES,
    ...["linux-image-cloud-amd64", "cloud-init", "ca-certificates"],
    ...["ifupdown", "isc-dhcp-client"],
  ],
  loaders: ["grub-pc-bin", "grub-efi-amd64-bin"],
  files: COMMON_SOURCE_FILES,
  images: ["cloud.qcow2", "cloud-uefi.qcow2"],
  async build(dir, packages) {
    const tree = join(dir, "tree");
    await makeDebianTree({ dir: tree, packages });
    await configureTree(tree, {
      "etc/cloud/cloud.cfg.d/90_datasources.cfg":
        "datasource_list: [ NoCloud, None ]\n",
    });
    await buildBiosDisk(tree, { dir, image: "cloud.qcow2" });
    await buildEfiDisk(tree, { dir, image: "cloud-uefi.qcow2" });
  },
};

const ARM64_RECIPE: DebianGuestRecipe = {
  packages: [
    ...["linux-image-arm64", "busybox-static", "qemu-guest-agent"],
    "grub-efi-arm64-bin",
  ],
  loaders: [],
  files: [...COMMON_SOURCE_FILES, "root.ts", "files"],
  images: ["arm64.qcow2"],
  async build(dir, packages) {
    const tree = join(dir, "tree");
    await makeDebianTree({ dir: tree, packages, foreign: "arm64" });
    await buildInitramfs({ tree, foreign: true, console: "ttyAMA0" }, [], dir);
    await buildArm64Disk([join(dir, "vmlinuz"), join(dir, "initrd.gz")], {
      dir,
      image: "arm64.qcow2",
      grubParts: join(tree, "usr/lib/grub/arm64-efi"),
    });
  },
};

const RECIPE_BY_KIND = {
  /** systemd, the usual kernel, guest agent, and programs that use a network; BIOS. */
  agent: AGENT_RECIPE,
  /** The cloud kernel and cloud-init, no guest agent; BIOS. */
  cloud: CLOUD_RECIPE,
  /** The same, which UEFI alone boots. */
  "cloud-uefi": CLOUD_RECIPE,
  /** The small guest of `build.ts`, for arm64; UEFI. */
  arm64: ARM64_RECIPE,
};

/**
 * Builds a guest unless it exists. Safe to run from several processes at once.
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
  const { packages, loaders, files, images, build } = RECIPE_BY_KIND[kind];
  // All kinds of a recipe are built and stored together.
  const name = images[0].replace(".qcow2", "");
  using store = await openGuestStore(name);
  const key = await guestKey([
    await readSourceTexts(files),
    await offeredPackageVersions(packages),
    await installedPackageVersions(["grub-common", ...loaders]),
  ]);
  const dir = await store.directory(`${name}-${key}`, async (staging) => {
    if (Deno.uid() !== 0) {
      throw new ToolsmithError(
        "failed",
        "Cannot build a Debian guest: root is needed",
      );
    }
    console.error(`building the guest ${name}, which takes some minutes`);
    await build(staging, packages);
  }, images);
  return join(dir, `${kind}.qcow2`);
}

/** Writes the configuration files that an installer would write. */
async function configureTree(tree: string, files: Record<string, string>) {
  const all = {
    "etc/fstab": FSTAB,
    "etc/hostname": "debian\n",
    // Empty: each VM generates its own id, without systemd's first-boot steps.
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
      if (name !== undefined) throw usageError(`unknown flag --${name}`);
    },
  }) as { _: string[] };
  if (!isDebianKind(kind) || more.length > 0) throw usageError("");
  const image = await buildDebian(kind);
  if (target !== undefined) {
    await Deno.mkdir(dirname(resolve(target)), { recursive: true });
    await Deno.copyFile(image, target);
  }
  console.log(target === undefined ? image : resolve(target));
  return 0;
}

function isDebianKind(kind: string | undefined): kind is DebianKind {
  return Object.keys(RECIPE_BY_KIND).some((name) => name === kind);
}

function usageError(message: string): ToolsmithError {
  return new ToolsmithError("usage", message, {
    hint: `debian.ts ${Object.keys(RECIPE_BY_KIND).join("|")} [OUT.qcow2]`,
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
