/**
 * How a machine is booted: what callers may choose.
 *
 * @module
 */
import type { Accelerator } from "../qemu/accelerator.ts";
import type { BootLoader, ImageArch } from "../qemu/target.ts";
import type { GuestExport } from "./shares.ts";
import type { Environment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { OnEvent } from "../events.ts";

export { parseAccelerator, wantedAccelerator } from "../qemu/accelerator.ts";

/** Where snapshots lie, and whether they are used. */
export interface SnapshotOptions {
  /** The directory of this image's snapshots. */
  dir: string;
  /** Digest of the image: a snapshot fits no other. */
  digest: string;
  /** Restore a snapshot that fits. @default {true} */
  restore?: boolean;
  /** Save the machine when it is ready, unless it was restored. @default {true} */
  save?: boolean;
}

/** How `boot` boots an image. */
export interface BootOptions {
  /** Path of the QCOW2. It is never written. */
  image: string;
  /** The image's processor. @default {undefined} what its disk says, else x86_64 */
  arch?: ImageArch;
  /**
   * What starts the boot loader: `bios`, `uefi` as this host has it, or the path
   * of a firmware's file.
   *
   * @default {undefined} what the image's disk asks for
   */
  firmware?: string;
  /** What the image boots with, where that is known. @default {undefined} its disk is read */
  loader?: BootLoader;
  /** Memory, in MiB. @default {512} */
  memory?: number;
  /** Count of processors. @default {2} or as many as the host has */
  cpus?: number;
  /** Directory to mount read-only at `/mnt/work`. @default {undefined} none */
  workspace?: string;
  /**
   * Size that the copy of the workspace may have in a guest whose kernel has no
   * 9p, in MiB.
   *
   * @default {128}
   */
  copyLimit?: number;
  /** Directories to mount writable; those that do not exist are made. @default {[]} */
  exports?: GuestExport[];
  /**
   * Give the guest a network. It can then reach what this host can reach,
   * services on the host itself included.
   *
   * @default {false}
   */
  network?: boolean;
  /** File that keeps what the guest writes. @default {undefined} not kept */
  overlay?: string;
  /**
   * Restore a snapshot that was made when the guest was ready, or make one then.
   * Not with an overlay, nor with arguments for QEMU that name a file of the
   * host: what that holds may have changed since.
   *
   * @default {undefined} always boot, never save
   */
  snapshots?: SnapshotOptions;
  /**
   * Files and directories that no export may hold, lie in or have a hard link to,
   * besides the image, `.toolsmith/` of the workspace, overlay, snapshots and
   * programs: the manifest, the cache and Docker's directory, for instance.
   *
   * @default {[]}
   */
  hostOnly?: string[];
  /** More arguments for QEMU. @default {[]} */
  qemuArgs?: string[];
  /** How to run the guest. @default {undefined} `TOOLSMITH_ACCEL`, else the best that works */
  accelerator?: Accelerator;
  /**
   * Time that the guest may take to be ready, in ms.
   *
   * @default {undefined} while its console or disk moves every 120 s, for 30
   * minutes; 120 s with `agentOptional`
   */
  bootTimeoutMs?: number;
  /**
   * Go on without an agent in the guest: no commands, no mounts, a console.
   *
   * @default {false}
   */
  agentOptional?: boolean;
  /** The serial console, for instance on a terminal. */
  console?: {
    /** Sees what the guest writes. */
    output: (chunk: Uint8Array) => void;
    /** What is typed. */
    input?: ReadableStream<Uint8Array>;
  };
  /** Takes the events of the boot and of the machine. */
  onEvent?: OnEvent;
  /** Read for `TOOLSMITH_QEMU`, `TOOLSMITH_ACCEL` and `TMPDIR`. @default {processEnvironment} */
  env?: Environment;
  /** Ends the boot when aborted. A machine that is up is ended by its `stop`. */
  signal?: AbortSignal;
}

const ARCHS: Record<string, ImageArch> = {
  x86_64: "x86_64",
  amd64: "x86_64",
  aarch64: "aarch64",
  arm64: "aarch64",
};

/**
 * Reads the name of a processor.
 *
 * @param text Such as `amd64` or `aarch64`.
 * @returns The name that Deno has for it.
 * @throws {ToolsmithError} `usage`.
 */
export function parseArch(text: string): ImageArch {
  if (Object.hasOwn(ARCHS, text)) return ARCHS[text];
  throw new ToolsmithError("usage", `Not a processor of a guest: ${text}`, {
    hint: "it is amd64 or arm64",
  });
}

const DEFAULT_MEMORY = 512;
const DEFAULT_CPUS = 2;

/**
 * Memory and processors of a machine.
 *
 * @param options What the caller chose.
 * @returns Memory in MiB, and the count of processors.
 * @throws {ToolsmithError} `usage`.
 */
export function sizes(
  options: BootOptions,
): { memory: number; cpus: number } {
  const cores = navigator.hardwareConcurrency;
  const sizes = {
    memory: options.memory ?? DEFAULT_MEMORY,
    cpus: options.cpus ?? Math.min(DEFAULT_CPUS, cores),
  };
  for (const [name, value] of Object.entries(sizes)) {
    if (Number.isSafeInteger(value) && value > 0) continue;
    throw new ToolsmithError("usage", `Not a usable ${name}: ${value}`);
  }
  return sizes;
}
