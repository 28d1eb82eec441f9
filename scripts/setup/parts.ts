/**
 * The programs that Toolsmith and its tests run: how each is found, and what
 * brings it.
 *
 * @module
 */
import { isOlder, MIN_ORAS_VERSION } from "../../lib/oci/oras_version.ts";
import { run } from "../../lib/system/process.ts";
import { hasApt, missingPackages } from "./apt.ts";
import { unpackOrasRelease } from "./release.ts";
import { KERNEL } from "./unpack.ts";

/** What can be asked for. */
export type Part =
  | "oras"
  | "registry"
  | "actionlint"
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
 * Where each part is: the absolute path of its program; absent where it could
 * not be had. `guest`, `debian` and `uefi` are a program that guests are built
 * with, and say that the rest is installed too.
 */
export type Tools = Partial<Record<Part, string>>;

/** How a part is found, and brought. */
export interface Source {
  /** An environment variable that names the program. */
  variable?: string;
  /** Names to look for on PATH. */
  programs: string[];
  /** Tells whether the program that was found will do. */
  suits?: (program: string) => Promise<boolean>;
  /** The package in the Go module `tools/<part>`. */
  go?: string;
  /** Another way, into a directory, where Go cannot build it. */
  otherwise?: (dir: string) => Promise<void>;
  /** Debian packages that bring it. */
  apt?: string[];
  /**
   * Programs that also run where their packages are unpacked: for whom.
   * Others have to be installed. @default {undefined} nobody
   */
  unpackedFor?: "users" | "all";
  /** Runs as root only. @default {false} */
  root?: boolean;
  /** What to do where there is no apt. */
  remedy: string;
}

/** What `scripts/guest/build.ts` builds the test guest with, besides QEMU. */
const GUEST_PACKAGES = [
  KERNEL,
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

/** What `scripts/guest/debian.ts` builds guests with, besides QEMU. */
const DEBIAN_PACKAGES = [
  "mmdebstrap",
  "debian-archive-keyring",
  "e2fsprogs",
  "fdisk",
  "grub-common",
  "grub-pc-bin",
];

/** What it builds those with that UEFI boots, and what boots them. */
const UEFI_PACKAGES = ["grub-efi-amd64-bin", "dosfstools", "mtools", "ovmf"];

const ARM64_PACKAGES = ["qemu-system-arm", "qemu-efi-aarch64"];
/** A cluster of two nodes, for the tests of docs/fleets.md. */
const SLURM_PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"];
/** What builds the Containerfile, and the base image that it starts from. */
const BUILDAH_PACKAGES = ["buildah", "mmdebstrap", "debian-archive-keyring"];

/** All of them. */
export const PARTS: Record<Part, Source> = {
  oras: {
    variable: "TOOLSMITH_ORAS",
    programs: ["oras"],
    suits: async (program) =>
      isOrasNewEnough((await run(program, { args: ["version"] })).stdout),
    go: "oras.land/oras/cmd/oras",
    otherwise: unpackOrasRelease,
    remedy: "install oras 1.3.0 or newer (https://oras.land/docs/installation)",
  },
  registry: {
    variable: "TOOLSMITH_TEST_REGISTRY",
    programs: ["docker-registry", "registry"],
    suits: async (program) =>
      (await run(program, { args: ["--version"] })).stdout.includes("/dist"),
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
    remedy: "install openssl, from your system's packages",
  },
  unzip: {
    programs: ["unzip"],
    apt: ["unzip"],
    unpackedFor: "users",
    remedy: "install unzip, from your system's packages",
  },
  tmux: {
    programs: ["tmux"],
    apt: ["tmux"],
    unpackedFor: "users",
    remedy: "install tmux, from your system's packages",
  },
  zsh: {
    programs: ["zsh"],
    apt: ["zsh"],
    remedy: "install zsh, from your system's packages",
  },
  fish: {
    programs: ["fish"],
    apt: ["fish"],
    remedy: "install fish, from your system's packages",
  },
  guest: {
    programs: ["busybox"],
    apt: GUEST_PACKAGES,
    unpackedFor: "all",
    remedy: "use a Debian host on x86_64: the guest is built from its packages",
  },
  debian: {
    programs: ["mmdebstrap"],
    suits: installed(DEBIAN_PACKAGES),
    apt: DEBIAN_PACKAGES,
    // The owners of a guest's files are root and others.
    root: true,
    remedy: `install ${DEBIAN_PACKAGES.join(" ")}, on Debian`,
  },
  uefi: {
    programs: ["grub-mkimage"],
    suits: installed(UEFI_PACKAGES),
    apt: UEFI_PACKAGES,
    remedy: `install ${UEFI_PACKAGES.join(" ")}, on Debian`,
  },
  arm64: {
    programs: ["qemu-system-aarch64"],
    suits: installed(ARM64_PACKAGES),
    apt: ARM64_PACKAGES,
    remedy: `install ${ARM64_PACKAGES.join(" ")}, on Debian`,
  },
  systemd: {
    programs: ["systemd-analyze"],
    apt: ["systemd"],
    remedy: "install systemd, from your system's packages",
  },
  slurm: {
    programs: ["slurmctld"],
    suits: installed(SLURM_PACKAGES),
    apt: SLURM_PACKAGES,
    remedy: `install ${SLURM_PACKAGES.join(" ")}, on Debian`,
  },
  nginx: {
    programs: ["nginx"],
    apt: ["nginx-light"],
    remedy: "install nginx, from your system's packages",
  },
  skopeo: {
    programs: ["skopeo"],
    apt: ["skopeo"],
    remedy: "install skopeo, from your system's packages",
  },
  buildah: {
    programs: ["buildah"],
    suits: installed(BUILDAH_PACKAGES),
    apt: BUILDAH_PACKAGES,
    // The owners of a base image's files are root and others.
    root: true,
    remedy: `install ${BUILDAH_PACKAGES.join(" ")}, on Debian`,
  },
};

/** Their names. */
export const ALL = Object.keys(PARTS) as Part[];

/** What a suite of tests, or the benchmark, needs that the usual ones do without. */
export const SUITES: Record<string, Part[]> = {
  images: ["debian", "uefi", "arm64"],
  faults: [],
  boots: [],
  fleet: ["slurm", "systemd", "buildah", "nginx"],
  bench: ["skopeo"],
};

/** What the usual tests need. */
export const USUAL: Part[] = ALL.filter((part) =>
  !Object.values(SUITES).some((parts) => parts.includes(part))
);

/**
 * Says how a part that could not be brought is had.
 *
 * Needs `--allow-read`, `--allow-env=PATH`, `--allow-sys=uid`.
 *
 * @param part Its name.
 * @returns A command, or what to do.
 */
export function remedyOf(part: Part): string {
  const { apt, unpackedFor, root, remedy } = PARTS[part];
  if (!apt || !hasApt()) return remedy;
  if (unpackedFor === "all") return `run "deno task setup ${part}" online`;
  const command = `sudo apt-get install ${apt.join(" ")}`;
  return root && Deno.uid() !== 0 ? `run as root, after: ${command}` : command;
}

function installed(packages: string[]) {
  return async () => (await missingPackages(packages)).length === 0;
}

/**
 * Tells whether oras is new enough.
 *
 * @param printed What `oras version` printed.
 */
export function isOrasNewEnough(printed: string): boolean {
  const [, version] = /^Version:\s+(\S+)/m.exec(printed) ?? [];
  return version !== undefined && !isOlder(version, MIN_ORAS_VERSION);
}
