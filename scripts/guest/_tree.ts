/**
 * Builds directory trees of Debian packages with mmdebstrap, whose apt ignores this
 * host's packages.
 */
import { runOrThrow } from "./_programs.ts";

/** What {@linkcode makeDebianTree} takes. */
export interface DebianTreeOptions {
  dir: string;
  /** Debian packages; their dependencies are added. */
  packages: string[];
  /**
   * A foreign architecture: packages are unpacked but not configured.
   * @default {undefined} this host's
   */
  foreign?: string;
}

const DEBIAN_RELEASE = "bookworm";

/** Files that a test guest does not need, half of the total. */
const EXCLUDED_PATHS = [
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

/** Limits the initramfs to the drivers of QEMU's devices. */
const SMALL_INITRAMFS = `set -e
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/toolsmith"
printf '%s\\n' virtio_pci virtio_blk ext4 \\
  >"$1/usr/share/initramfs-tools/modules.d/toolsmith"`;

/**
 * Builds a directory tree of Debian packages.
 *
 * Needs `--allow-run`, and root.
 *
 * @throws {ToolsmithError} `failed` with mmdebstrap's error.
 */
export async function makeDebianTree(
  options: DebianTreeOptions,
): Promise<void> {
  const { dir, packages, foreign } = options;
  const kind = foreign
    ? ["--variant=extract", `--architectures=${foreign}`]
    : ["--variant=minbase", `--essential-hook=${SMALL_INITRAMFS}`];
  await runOrThrow("unshare", {
    args: [
      // A mount namespace: mounts in the tree end with mmdebstrap.
      ...["--mount", "mmdebstrap", "--quiet"],
      "--mode=root",
      "--format=directory",
      ...kind,
      `--include=${packages.join(",")}`,
      ...EXCLUDED_PATHS.map((path) => `--dpkgopt=path-exclude=${path}`),
      ...[DEBIAN_RELEASE, dir, ...await aptSources()],
    ],
    timeoutMs: 20 * 60_000,
  });
}

/**
 * Returns the candidate versions of packages in apt; unknown packages are skipped.
 *
 * Needs `--allow-run=apt-cache`.
 *
 * @param packages Their names.
 */
export async function offeredPackageVersions(
  packages: string[],
): Promise<string> {
  const { stdout } = await runOrThrow("apt-cache", {
    args: ["policy", ...packages],
  });
  return stdout.match(/^\S+:$|^ +Candidate: .*$/gm)?.join("\n") ?? "";
}

/**
 * Returns this host's apt sources for the release; none if the host runs another
 * one, so that mmdebstrap uses its default.
 */
async function aptSources(): Promise<string[]> {
  const { stdout } = await runOrThrow("apt-get", {
    args: [
      ...["indextargets", "--no-release-info"],
      ...["--format", "$(ORIGIN) $(CODENAME) $(REPO_URI) $(RELEASE)"],
      "Created-By: Packages",
    ],
  });
  const lines = stdout.split("\n").map((line) => line.split(" "))
    .filter(([origin, codename = ""]) =>
      origin === "Debian" && codename.split("-")[0] === DEBIAN_RELEASE
    )
    .map(([, , uri, suite]) => `deb ${uri} ${suite} main`);
  return [...new Set(lines)];
}
