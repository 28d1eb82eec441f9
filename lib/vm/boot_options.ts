/** Options of `boot`, their defaults and parsers. */
import type { Accelerator } from "../qemu/accelerator.ts";
import { type EgressRule, parseEgressRule } from "../net/rules.ts";
import type { BootLoader, ImageArch } from "../qemu/target.ts";
import type { Environment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { OnEvent } from "../events.ts";

export { acceleratorFromEnv, parseAccelerator } from "../qemu/accelerator.ts";

/** A host directory that the guest may write to. */
export interface GuestExport {
  /** Path on the host. */
  path: string;
  /** Mount tag: mounted at `/mnt/<tag>`. @default {undefined} the directory's name */
  tag?: string;
}

/** Directory and use of snapshots. */
export interface SnapshotOptions {
  /** Directory of this image's snapshots. */
  dir: string;
  /** Digest of the image; part of the snapshot's key. */
  digest: string;
  /** Restore a matching snapshot. @default {true} */
  restore?: boolean;
  /** Save a booted VM when it is ready. @default {true} */
  save?: boolean;
}

/** How `boot` boots an image. */
export interface BootOptions {
  /** Path of the QCOW2 image, which is never written. */
  image: string;
  /** Processor of the guest. @default {undefined} detected from the image, else x86_64 */
  arch?: ImageArch;
  /**
   * Firmware: `bios`, `uefi` (the host's), or the path of a firmware file.
   *
   * @default {undefined} detected from the image
   */
  firmware?: string;
  /** The image's boot loader, if known. @default {undefined} detected from the image */
  loader?: BootLoader;
  /** Memory, in MiB. @default {512} */
  memory?: number;
  /** Number of processors. @default {2} or as many as the host has */
  cpus?: number;
  /** Directory to mount read-only at `/mnt/work`. @default {undefined} none */
  workspace?: string;
  /**
   * Limit for the copy of the workspace in a guest whose kernel lacks 9p, in MiB.
   *
   * @default {128}
   */
  copyLimit?: number;
  /** Directories to mount writable; missing ones are created. @default {[]} */
  exports?: GuestExport[];
  /**
   * Connect the guest to the network: with `allow`, to the hosts of these rules
   * (`HOST[:PORT]`, `*.HOST`, `NAME:PORT=ADDRESS:PORT`); with `true`, over TCP to
   * everything but this host; with `"host-loopback"`, by QEMU's user networking to what
   * this host reaches, services on the host itself included.
   *
   * @default {false}
   */
  network?: boolean | "host-loopback" | { allow: string[] };
  /** File that keeps the guest's disk writes. @default {undefined} discard them */
  overlay?: string;
  /**
   * Restore a snapshot of the ready guest, or save one. Ignored with an overlay, and with
   * QEMU arguments that name host files, as their content may change.
   *
   * @default {undefined} always boot, never save
   */
  snapshots?: SnapshotOptions;
  /**
   * More files and directories that no export may contain, lie in or have a hard link to:
   * manifest, cache, Docker's directory. The image, the workspace's `.toolsmith/`,
   * overlay, snapshots and programs are always protected.
   *
   * @default {[]}
   */
  hostOnly?: string[];
  /** Extra arguments for QEMU. @default {[]} */
  qemuArgs?: string[];
  /** Accelerator. @default {undefined} `TOOLSMITH_ACCEL`, else the fastest that works */
  accelerator?: Accelerator;
  /**
   * Time for the guest to start, in milliseconds. It has as long again, but two minutes
   * at least, to mount directories and to configure its network.
   *
   * @default {undefined} 30 minutes with activity on console or disk every 120 s;
   * 120 s with `agentOptional`
   */
  bootTimeoutMs?: number;
  /**
   * Continue without a guest agent: only the console works, no commands or mounts.
   *
   * @default {false}
   */
  agentOptional?: boolean;
  /** The serial console, such as on a terminal. */
  console?: {
    /** Receives what the guest prints. */
    output: (chunk: Uint8Array) => void;
    /** Forwarded to the guest. */
    input?: ReadableStream<Uint8Array>;
  };
  /** Receives the events of the boot and of the VM. */
  onEvent?: OnEvent;
  /** Source of `TOOLSMITH_QEMU`, `TOOLSMITH_ACCEL` and `TMPDIR`. @default {processEnvironment} */
  env?: Environment;
  /** Ends the boot when aborted, but not a VM that is ready. */
  signal?: AbortSignal;
}

/** Parses the name of a processor, such as `amd64` or `aarch64`, into Deno's name. */
export function parseArch(text: string): ImageArch {
  if (text === "amd64" || text === "x86_64") return "x86_64";
  if (text === "arm64" || text === "aarch64") return "aarch64";
  throw new ToolsmithError("usage", `Unsupported guest processor: ${text}`, {
    hint: "use amd64 or arm64",
  });
}

/**
 * Parses the rules of a network that Toolsmith itself serves: `"all"` for everything
 * but this host; `undefined` without such a network.
 */
export function parseNetworkRules(
  network: BootOptions["network"],
): EgressRule[] | "all" | undefined {
  if (network === true) return "all";
  if (!network || network === "host-loopback") return undefined;
  return network.allow.map((text) => parseEgressRule(text));
}

const DEFAULT_MEMORY_MIB = 512;
const DEFAULT_CPUS = 2;

/** Applies the defaults for memory (in MiB) and processors, and validates them. */
export function memoryAndCpus(options: BootOptions) {
  const {
    memory = DEFAULT_MEMORY_MIB,
    cpus = Math.min(DEFAULT_CPUS, navigator.hardwareConcurrency),
  } = options;
  for (const [name, value] of Object.entries({ memory, cpus })) {
    if (Number.isSafeInteger(value) && value > 0) continue;
    throw new ToolsmithError("usage", `Invalid ${name}: ${value}`);
  }
  return { memory, cpus };
}
