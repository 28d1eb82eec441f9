/**
 * Trees of Debian's packages, made by mmdebstrap: apt resolves them as on a
 * machine of their own, so this host's packages play no part.
 *
 * @module
 */
import { must } from "./_programs.ts";

/** What {@linkcode makeTree} takes. */
export interface TreeOptions {
  /** Where to make it. */
  dir: string;
  /** Debian packages, brought with those that they need. */
  packages: string[];
  /**
   * An architecture whose programs this host cannot run: packages are unpacked
   * and not set up. @default {undefined} this host's
   */
  foreign?: string;
}

const RELEASE = "bookworm";

/** Files that a test guest has no use for: half of what would be there. */
const LEFT_OUT = [
  "/usr/share/doc/*",
  "/usr/share/info/*",
  "/usr/share/locale/*",
  "/usr/share/man/*",
  "/lib/modules/*/kernel/drivers/gpu/*",
  "/lib/modules/*/kernel/drivers/iio/*",
  "/lib/modules/*/kernel/drivers/infiniband/*",
  "/lib/modules/*/kernel/drivers/media/*",
  "/lib/modules/*/kernel/drivers/net/ethernet/*",
  "/lib/modules/*/kernel/drivers/net/wireless/*",
  "/lib/modules/*/kernel/drivers/staging/*",
  "/lib/modules/*/kernel/sound/*",
];

/** An initramfs with the drivers of QEMU's devices rather than with all. */
const SMALL_INITRAMFS = `set -e
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/toolsmith"
printf '%s\\n' virtio_pci virtio_blk ext4 \\
  >"$1/usr/share/initramfs-tools/modules.d/toolsmith"`;

/**
 * Makes a tree of packages.
 *
 * Needs `--allow-run`, and root.
 *
 * @param options Where, and of what.
 * @throws {ToolsmithError} `failed` with what mmdebstrap said.
 */
export async function makeTree(options: TreeOptions): Promise<void> {
  const { dir, packages, foreign } = options;
  const kind = foreign
    ? ["--variant=extract", `--architectures=${foreign}`]
    : ["--variant=minbase", `--essential-hook=${SMALL_INITRAMFS}`];
  await must("unshare", {
    args: [
      // What is mounted in the tree goes with mmdebstrap, however that ends.
      ...["--mount", "mmdebstrap", "--quiet"],
      "--mode=root",
      "--format=directory",
      ...kind,
      `--include=${packages.join(",")}`,
      ...LEFT_OUT.map((path) => `--dpkgopt=path-exclude=${path}`),
      ...[RELEASE, dir, ...await sources()],
    ],
    timeoutMs: 20 * 60_000,
  });
}

/**
 * The versions that apt offers of some packages: what a tree of them is made
 * of. Packages that it does not know are left out.
 *
 * Needs `--allow-run=apt-cache`.
 *
 * @param packages Their names.
 */
export async function offeredVersions(packages: string[]): Promise<string> {
  const { stdout } = await must("apt-cache", { args: ["policy", ...packages] });
  return stdout.match(/^\S+:$|^ +Candidate: .*$/gm)?.join("\n") ?? "";
}

/**
 * Where this host's apt takes Debian's packages from; none where it is set up
 * for another release, and mmdebstrap knows the way.
 */
async function sources(): Promise<string[]> {
  const { stdout } = await must("apt-get", {
    args: [
      ...["indextargets", "--no-release-info"],
      ...["--format", "$(ORIGIN) $(CODENAME) $(REPO_URI) $(RELEASE)"],
      "Created-By: Packages",
    ],
  });
  const lines = stdout.split("\n").map((line) => line.split(" "))
    .filter(([origin, codename = ""]) =>
      origin === "Debian" && codename.split("-")[0] === RELEASE
    )
    .map(([, , uri, suite]) => `deb ${uri} ${suite} main`);
  return [...new Set(lines)];
}
