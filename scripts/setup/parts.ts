/**
 * The parts: programs that Toolsmith and its tests run, how each is found and how it is
 * installed.
 */
import {
  isOlderVersion,
  MIN_ORAS_VERSION,
} from "../../lib/oci/oras_version.ts";
import { runProcess } from "../../lib/system/process.ts";
import { hasApt, missingPackages } from "./apt.ts";
import { downloadOrasRelease } from "./release.ts";
import { KERNEL_PACKAGE } from "./unpack.ts";

/** A program, or a set of packages, that setup can install. */
export type Part =
  | "oras"
  | "registry"
  | "actionlint"
  | "cosign"
  | "qemuImg"
  | "qemu"
  | "openssl"
  | "unzip"
  | "tmux"
  | "zsh"
  | "fish"
  | "guest"
  | "debian"
  | "uefi"
  | "arm64"
  | "slurm"
  | "systemd"
  | "buildah"
  | "nginx"
  | "skopeo";

/**
 * The absolute path of each part's program, absent if it is missing. For `guest`,
 * `debian` and `uefi` it is one of the programs that build guests, and implies that
 * the others are installed.
 */
export type Tools = Partial<Record<Part, string>>;

/** How a part is found and installed. */
export interface PartSource {
  /** Environment variable with the program's path. */
  variable?: string;
  /** Names to look for on PATH. */
  programs: string[];
  /** Tells whether a program that was found is usable. */
  isUsable?: (program: string) => Promise<boolean>;
  /** The package in the Go module `tools/<part>`. */
  go?: string;
  /** Fills a directory in another way if Go cannot build the program. */
  fallback?: (dir: string) => Promise<void>;
  /** Debian packages with the program. */
  apt?: string[];
  /**
   * Who runs the program from unpacked packages instead of installed ones.
   * @default {undefined} nobody
   */
  unpackedFor?: "users" | "all";
  /** Usable by root only. @default {false} */
  root?: boolean;
  /** Hint for hosts without apt. */
  remedy: string;
}

/** `scripts/guest/build.ts` builds the test guest with these, besides QEMU. */
const GUEST_PACKAGES = [
  KERNEL_PACKAGE,
  "busybox-static",
  "qemu-guest-agent",
  "syslinux",
  "syslinux-common",
  "mtools",
  "dosfstools",
  "fdisk",
  "cpio",
  "kmod",
];

/** `scripts/guest/debian.ts` builds guests with these, besides QEMU. */
const DEBIAN_PACKAGES = [
  "mmdebstrap",
  "debian-archive-keyring",
  "e2fsprogs",
  "fdisk",
  "grub-common",
  "grub-pc-bin",
];

/** For building and booting UEFI guests. */
const UEFI_PACKAGES = ["grub-efi-amd64-bin", "dosfstools", "mtools", "ovmf"];

const ARM64_PACKAGES = ["qemu-system-arm", "qemu-efi-aarch64"];
/** For the two-node cluster in the tests of docs/fleets.md. */
const SLURM_PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"];
/** For building the Containerfile and its base image. */
const BUILDAH_PACKAGES = ["buildah", "mmdebstrap", "debian-archive-keyring"];

export const PARTS: Record<Part, PartSource> = {
  oras: {
    variable: "TOOLSMITH_ORAS",
    programs: ["oras"],
    isUsable: async (program) =>
      isOrasNewEnough(
        (await runProcess(program, { args: ["version"] })).stdout,
      ),
    go: "oras.land/oras/cmd/oras",
    fallback: downloadOrasRelease,
    remedy: "install oras 1.3.0 or newer (https://oras.land/docs/installation)",
  },
  registry: {
    variable: "TOOLSMITH_TEST_REGISTRY",
    programs: ["docker-registry", "registry"],
    isUsable: async (program) =>
      (await runProcess(program, { args: ["--version"] })).stdout.includes(
        "/dist",
      ),
    go: ".",
    apt: ["docker-registry"],
    unpackedFor: "users",
    remedy: "install Go 1.25 or newer, or Debian's docker-registry",
  },
  actionlint: {
    variable: "TOOLSMITH_TEST_ACTIONLINT",
    programs: ["actionlint"],
    go: "github.com/rhysd/actionlint/cmd/actionlint",
    remedy:
      "install Go 1.25 or newer, or actionlint (https://github.com/rhysd/actionlint)",
  },
  cosign: {
    variable: "TOOLSMITH_TEST_COSIGN",
    programs: ["cosign"],
    isUsable: async (program) =>
      /^GitVersion: +v3/m.test(
        (await runProcess(program, { args: ["version"] })).stdout,
      ),
    go: "github.com/sigstore/cosign/v3/cmd/cosign",
    remedy:
      "install Go 1.26 or newer, or cosign 3 (https://github.com/sigstore/cosign)",
  },
  qemuImg: {
    programs: ["qemu-img"],
    apt: ["qemu-utils"],
    unpackedFor: "users",
    remedy:
      "install qemu-utils (Debian, Ubuntu), qemu-img (Fedora) or qemu (Homebrew)",
  },
  qemu: {
    variable: "TOOLSMITH_QEMU",
    programs: ["qemu-system-x86_64"],
    apt: ["qemu-system-x86"],
    unpackedFor: "users",
    remedy:
      "install qemu-system-x86 (Debian, Ubuntu, Fedora) or qemu (Homebrew)",
  },
  openssl: {
    programs: ["openssl"],
    apt: ["openssl"],
    unpackedFor: "users",
    remedy: "install openssl from your system's packages",
  },
  unzip: {
    programs: ["unzip"],
    apt: ["unzip"],
    unpackedFor: "users",
    remedy: "install unzip from your system's packages",
  },
  tmux: {
    programs: ["tmux"],
    apt: ["tmux"],
    unpackedFor: "users",
    remedy: "install tmux from your system's packages",
  },
  zsh: {
    programs: ["zsh"],
    apt: ["zsh"],
    remedy: "install zsh from your system's packages",
  },
  fish: {
    programs: ["fish"],
    apt: ["fish"],
    remedy: "install fish from your system's packages",
  },
  guest: {
    programs: ["busybox"],
    apt: GUEST_PACKAGES,
    unpackedFor: "all",
    remedy: "use a Debian host on x86_64: the guest is built from its packages",
  },
  debian: {
    programs: ["mmdebstrap"],
    isUsable: arePackagesInstalled(DEBIAN_PACKAGES),
    apt: DEBIAN_PACKAGES,
    // A guest's files belong to root and other users.
    root: true,
    remedy: `install ${DEBIAN_PACKAGES.join(" ")}, on Debian`,
  },
  uefi: {
    programs: ["grub-mkimage"],
    isUsable: arePackagesInstalled(UEFI_PACKAGES),
    apt: UEFI_PACKAGES,
    remedy: `install ${UEFI_PACKAGES.join(" ")}, on Debian`,
  },
  arm64: {
    programs: ["qemu-system-aarch64"],
    isUsable: arePackagesInstalled(ARM64_PACKAGES),
    apt: ARM64_PACKAGES,
    remedy: `install ${ARM64_PACKAGES.join(" ")}, on Debian`,
  },
  systemd: {
    programs: ["systemd-analyze"],
    apt: ["systemd"],
    remedy: "install systemd from your system's packages",
  },
  slurm: {
    programs: ["slurmctld"],
    isUsable: arePackagesInstalled(SLURM_PACKAGES),
    apt: SLURM_PACKAGES,
    remedy: `install ${SLURM_PACKAGES.join(" ")}, on Debian`,
  },
  nginx: {
    programs: ["nginx"],
    apt: ["nginx-light"],
    remedy: "install nginx from your system's packages",
  },
  skopeo: {
    programs: ["skopeo"],
    apt: ["skopeo"],
    remedy: "install skopeo from your system's packages",
  },
  buildah: {
    programs: ["buildah"],
    isUsable: arePackagesInstalled(BUILDAH_PACKAGES),
    apt: BUILDAH_PACKAGES,
    // A base image's files belong to root and other users.
    root: true,
    remedy: `install ${BUILDAH_PACKAGES.join(" ")}, on Debian`,
  },
};

export const ALL_PARTS = Object.keys(PARTS) as Part[];

/** Additional parts of test suites that are not run by default, and of the benchmark. */
export const SUITE_PARTS: Record<string, Part[]> = {
  images: ["debian", "uefi", "arm64"],
  faults: [],
  boots: [],
  scripts: ["actionlint", "unzip"],
  fleet: ["slurm", "systemd", "buildah", "nginx", "cosign"],
  bench: ["skopeo"],
};

/** The parts of the default test suites. */
export const DEFAULT_PARTS: Part[] = ALL_PARTS.filter((part) =>
  !Object.values(SUITE_PARTS).some((parts) => parts.includes(part))
);

/**
 * Returns how to install a missing part.
 *
 * Needs `--allow-read`, `--allow-env=PATH`, `--allow-sys=uid`.
 *
 * @returns A command or a sentence.
 */
export function installHint(part: Part): string {
  const { apt, unpackedFor, root, remedy } = PARTS[part];
  if (!apt || !hasApt()) return remedy;
  if (unpackedFor === "all") return `run "deno task setup ${part}" online`;
  const command = `sudo apt-get install ${apt.join(" ")}`;
  return root && Deno.uid() !== 0 ? `run as root, after: ${command}` : command;
}

function arePackagesInstalled(packages: string[]) {
  return async () => (await missingPackages(packages)).length === 0;
}

/**
 * Tells whether oras is new enough.
 *
 * @param printed The output of `oras version`.
 */
export function isOrasNewEnough(printed: string): boolean {
  const [, version] = /^Version:\s+(\S+)/m.exec(printed) ?? [];
  return version !== undefined && !isOlderVersion(version, MIN_ORAS_VERSION);
}
