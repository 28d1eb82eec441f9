/**
 * Flags that several commands share, in groups: as data for parser and help, and
 * the function that makes the library's options of them.
 *
 * @module
 */
import type { HydrateOptions } from "../hydrate/hydrate.ts";
import type { RegistryOptions } from "../oci/registry.ts";
import type { WorkspaceVmOptions } from "../run/workspace_vm.ts";
import {
  type BootOptions,
  parseAccelerator,
  parseArch,
} from "../vm/options.ts";
import { parseExport } from "../vm/shares.ts";
import type { ParsedFlags } from "./flag_values.ts";
import type { Flag, FlagGroup } from "./spec.ts";

/** Where the manifest is. */
export const MANIFEST: Flag[] = inGroup("image", [
  {
    name: "manifest",
    value: "PATH",
    help: "the manifest; else TOOLSMITH_MANIFEST, else .toolsmith/tools.json",
  },
]);

/** Where the cache is. */
export const CACHE: Flag[] = inGroup("image", [
  {
    name: "cache",
    value: "DIR",
    help: "the cache; else TOOLSMITH_CACHE, else .toolsmith/cache",
  },
]);

/** How to reach a registry. */
export const REGISTRY: Flag[] = inGroup("transfer", [
  {
    name: "plain-http",
    help: "reach the registry by plain HTTP; loopback registries always are",
  },
  {
    name: "ca-file",
    value: "FILE",
    help: "trust the certificate authority in this PEM file",
  },
]);

/** What to do about a transfer that fails. */
export const TRANSFER: Flag[] = inGroup("transfer", [
  {
    name: "retries",
    value: "N",
    help: "retries after a transient failure (default 3)",
  },
  {
    name: "stall-timeout",
    value: "SECONDS",
    help: "abort a transfer without progress after SECONDS (default 60)",
  },
]);

/** How an image comes from a registry. */
const CONNECTIONS: Flag[] = inGroup("transfer", [
  {
    name: "connections",
    value: "N",
    help: "how many an image of 64 MiB or more comes over (default 4)",
  },
]);

/** Events and results as JSON Lines. */
export const JSON_OUTPUT: Flag[] = inGroup("output", [
  { name: "json", help: "print events as JSON Lines, the result last" },
]);

/** What is printed. */
export const OUTPUT: Flag[] = [
  ...JSON_OUTPUT,
  ...inGroup("output", [
    { name: "quiet", help: "print nothing but the result and errors" },
    { name: "no-progress", help: "draw no progress bar" },
  ]),
];

/** Which image of several. */
export const IMAGE_ARCH: Flag[] = inGroup("image", [
  {
    name: "arch",
    value: "ARCH",
    help: "of an index, the image for amd64 or arm64; else for this host",
  },
]);

/** How to get an image. */
export const HYDRATE: Flag[] = [
  ...MANIFEST,
  ...CACHE,
  ...inGroup("image", [
    { name: "offline", help: "use no network: cached, or an error" },
    {
      name: "verify",
      help: "read the cached image again and compare its digest",
    },
    { name: "force", help: "re-download even if cached" },
  ]),
  ...TRANSFER,
  ...CONNECTIONS,
  ...REGISTRY,
  ...OUTPUT,
];

/** How a command runs in the guest. */
export const EXEC: Flag[] = inGroup("command", [
  {
    name: "timeout",
    value: "SECONDS",
    help: "end after SECONDS, the download included, with exit status 124",
  },
  {
    name: "env",
    value: "NAME=VALUE",
    many: true,
    help: "set a variable for the command",
  },
  {
    name: "cwd",
    value: "DIR",
    help:
      "the command's directory in the guest; a relative one starts from here",
  },
]);

/** What the machine is like. */
export const MACHINE: Flag[] = inGroup("machine", [
  { name: "memory", value: "SIZE", help: "memory of the VM (default 512M)" },
  {
    name: "cpus",
    value: "N",
    help: "processors of the VM (default 2, or what the host has)",
  },
  {
    name: "arch",
    value: "amd64|arm64",
    help: "processor of the VM; else what the image is for",
  },
  {
    name: "accel",
    value: "kvm|hvf|tcg",
    help: "how the VM runs; else TOOLSMITH_ACCEL, else the fastest that works",
  },
  {
    name: "firmware",
    value: "WHICH",
    help: "bios, uefi or a file; else what the image's boot loader needs",
  },
  {
    name: "export",
    value: "DIR[:TAG]",
    many: true,
    help: "mount this directory writable, at /mnt/TAG",
  },
  {
    name: "copy-limit",
    value: "SIZE",
    help: "workspace that is copied where it cannot be mounted (default 128M)",
  },
  {
    name: "network",
    help: "give the VM a network: it can reach all that this host reaches",
  },
  {
    name: "overlay",
    value: "FILE",
    help: "keep what the guest writes to its disk in this file",
  },
  { name: "fresh", help: "boot even if a snapshot could be restored" },
  { name: "no-save", help: "save no snapshot for the next start" },
  {
    name: "boot-timeout",
    value: "SECONDS",
    help: "time to be ready; else until the guest does nothing for 120 seconds",
  },
]);

/** How a command runs in the guest. */
export interface ExecFlags {
  /** Time it may take, in milliseconds. */
  timeoutMs?: number;
  /** Its variables. */
  env: Record<string, string>;
  /** Its directory. */
  cwd?: string;
}

/** How results and events are printed. */
export interface OutputFlags {
  /** As JSON Lines. */
  json: boolean;
  /** Only the result and errors. */
  quiet: boolean;
  /** A bar where a terminal can show one. */
  progress: boolean;
}

/** Reads {@linkcode OUTPUT}. */
export function readOutput(given: ParsedFlags): OutputFlags {
  return {
    json: given.has("json"),
    quiet: given.has("quiet"),
    progress: !given.has("no-progress"),
  };
}

/** Reads {@linkcode EXEC}. */
export function readExec(given: ParsedFlags): ExecFlags {
  return {
    timeoutMs: given.duration("timeout"),
    env: given.pairs("env"),
    cwd: given.text("cwd"),
  };
}

/** Reads {@linkcode REGISTRY}. */
export function readRegistry(
  given: ParsedFlags,
): Pick<RegistryOptions, "plainHttp" | "caFile"> {
  return {
    // Where it is not given, the registry's address decides.
    plainHttp: given.has("plain-http") || undefined,
    caFile: given.text("ca-file"),
  };
}

/** Reads {@linkcode TRANSFER}. */
export function readTransfer(
  given: ParsedFlags,
): Pick<HydrateOptions, "retries" | "stallTimeoutMs"> {
  return {
    retries: given.count("retries"),
    stallTimeoutMs: given.duration("stall-timeout"),
  };
}

/** Reads {@linkcode HYDRATE}, but for the manifest and what is printed. */
export function readHydrate(
  given: ParsedFlags,
): Omit<HydrateOptions, "onEvent" | "env" | "signal"> {
  return {
    cache: given.text("cache"),
    offline: given.has("offline"),
    verify: given.has("verify"),
    force: given.has("force"),
    connections: given.connections("connections"),
    ...readTransfer(given),
    ...readRegistry(given),
  };
}

/** Reads `--arch`. */
export function readArch(given: ParsedFlags): BootOptions["arch"] {
  const arch = given.text("arch");
  return arch === undefined ? undefined : parseArch(arch);
}

/** Reads {@linkcode MACHINE} and {@linkcode HYDRATE}. */
export function readMachine(given: ParsedFlags): WorkspaceVmOptions {
  const exports = given.texts("export").map(parseExport);
  return {
    hydrate: readHydrate(given),
    arch: readArch(given),
    accelerator: parseAccelerator(given.text("accel"), "--accel "),
    firmware: given.text("firmware"),
    memory: given.mebibytes("memory"),
    cpus: given.count("cpus"),
    // What is not given must not rule the detached VM out.
    exports: exports.length > 0 ? exports : undefined,
    copyLimit: given.mebibytes("copy-limit"),
    network: given.has("network") || undefined,
    overlay: given.text("overlay"),
    fresh: given.has("fresh"),
    save: !given.has("no-save"),
    bootTimeoutMs: given.duration("boot-timeout"),
  };
}

function inGroup(group: FlagGroup, flags: Flag[]): Flag[] {
  return flags.map((flag) => ({ ...flag, group }));
}
