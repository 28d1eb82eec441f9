/** Flags that several commands share, keyed by the library's option names. */
import {
  CONNECTIONS_RANGE_TEXT,
  parseConnectionCount,
} from "../oci/registry_options.ts";
import type { WorkspaceVmOptions } from "../run/workspace_vm.ts";
import { parseAccelerator, parseArch } from "../vm/boot_options.ts";
import { parseExport } from "../vm/shares.ts";
import {
  createValueParser,
  type FlagGroup,
  type Flags,
  type FlagValues,
  keyValueFlag,
  negatedSwitchFlag,
  parseCount,
  parseSecondsToMs,
  parseSizeToMib,
  repeatableFlag,
  switchFlag,
  usageError,
  valueFlag,
} from "./flag.ts";

export const MANIFEST_FLAGS = withFlagGroup("image", {
  manifest: valueFlag(
    "manifest PATH",
    "manifest (default: TOOLSMITH_MANIFEST, then .toolsmith/tools.json)",
  ),
});

export const CACHE_FLAGS = withFlagGroup("image", {
  cache: valueFlag(
    "cache DIR",
    "cache directory (default: TOOLSMITH_CACHE, then .toolsmith/cache)",
  ),
});

export const REGISTRY_FLAGS = withFlagGroup("transfer", {
  plainHttp: {
    ...switchFlag(
      "plain-http",
      "use plain HTTP for the registry (always done for a loopback host)",
    ),
    // If it is not given, the registry's host decides.
    parse: (values: string[]) => values.length > 0 || undefined,
  },
  caFile: valueFlag(
    "ca-file FILE",
    "trust the certificate authority in this PEM file",
  ),
});

export const TRUST_FLAGS = withFlagGroup("image", {
  trustedRoot: valueFlag(
    "trusted-root FILE",
    "check signatures with these roots (default: Sigstore's and GitHub's)",
  ),
});

export const TRANSFER_FLAGS = withFlagGroup("transfer", {
  retries: valueFlag(
    "retries N",
    "retries after a transient failure (default 3)",
    parseCount,
  ),
  stallTimeoutMs: valueFlag(
    "stall-timeout SECONDS",
    "abort a transfer without progress after SECONDS (default 60)",
    parseSecondsToMs,
  ),
});

export const JSON_FLAGS = withFlagGroup("output", {
  json: switchFlag("json", "print events as JSON Lines, the result last"),
});

export const PROGRESS_FLAGS = withFlagGroup("output", {
  quiet: switchFlag("quiet", "print only the result and errors"),
  progress: negatedSwitchFlag("no-progress", "draw no progress bar"),
});

export const OUTPUT_FLAGS = { ...JSON_FLAGS, ...PROGRESS_FLAGS };

export const IMAGE_ARCH_FLAGS = withFlagGroup("image", {
  arch: valueFlag(
    "arch ARCH",
    "image of a multi-platform index: amd64 or arm64 (default: the host's)",
    parseArch,
  ),
});

export const HYDRATE_FLAGS = {
  ...CACHE_FLAGS,
  ...withFlagGroup("image", {
    offline: switchFlag(
      "offline",
      "use no network; fail if the image is not cached",
    ),
    verify: switchFlag(
      "verify",
      "read the cached image again and compare its digest",
    ),
    force: switchFlag("force", "re-download even if cached"),
    base: valueFlag(
      "base FILE",
      "copy unchanged bytes from this older image (default: the one last used)",
    ),
  }),
  ...TRUST_FLAGS,
  ...TRANSFER_FLAGS,
  ...withFlagGroup("transfer", {
    connections: valueFlag(
      "connections N",
      "parallel connections for an image of 64 MiB or more (default 4)",
      createValueParser(CONNECTIONS_RANGE_TEXT, "4", parseConnectionCount),
    ),
  }),
  ...REGISTRY_FLAGS,
};

export const COMMAND_FLAGS = withFlagGroup("command", {
  timeoutMs: valueFlag(
    "timeout SECONDS",
    "stop after SECONDS, download included, with exit status 124",
    parseSecondsToMs,
  ),
  env: keyValueFlag("env NAME=VALUE", "set a variable for the command"),
  cwd: valueFlag(
    "cwd DIR",
    "working directory in the guest, absolute or relative to this one",
  ),
});

const VM_ONLY_FLAGS = withFlagGroup("vm", {
  memory: valueFlag(
    "memory SIZE",
    "memory of the VM (default 512M)",
    parseSizeToMib,
  ),
  cpus: valueFlag(
    "cpus N",
    "processors of the VM (default 2, at most the host's)",
    parseCount,
  ),
  arch: valueFlag(
    "arch amd64|arm64",
    "processor architecture of the VM (default: the image's)",
    parseArch,
  ),
  accelerator: valueFlag(
    "accel kvm|hvf|tcg",
    "accelerator (default: TOOLSMITH_ACCEL, then the fastest that works)",
    (text) => parseAccelerator(text, "--accel "),
  ),
  firmware: valueFlag(
    "firmware WHICH",
    "bios, uefi or a file (default: what the image's boot loader needs)",
  ),
  exports: repeatableFlag(
    "export DIR[:TAG]",
    "mount DIR writable in the guest at /mnt/TAG",
    parseExport,
  ),
  copyLimit: valueFlag(
    "copy-limit SIZE",
    "largest workspace to copy if it cannot be mounted (default 128M)",
    parseSizeToMib,
  ),
  allowNet: repeatableFlag(
    "allow-net HOST[:PORT]",
    "let the VM reach this host, *.HOST or IP; several with commas",
    (text) => text.split(","),
  ),
  network: switchFlag(
    "network",
    "let the VM reach everything but this host",
  ),
  hostLoopback: switchFlag(
    "network=host-loopback",
    "let the VM reach everything, services on this host included",
  ),
  overlay: valueFlag(
    "overlay FILE",
    "keep the guest's disk writes in this overlay file",
  ),
  fresh: switchFlag("fresh", "boot even if a snapshot can be restored"),
  save: negatedSwitchFlag("no-save", "save no snapshot for the next start"),
  bootTimeoutMs: valueFlag(
    "boot-timeout SECONDS",
    "time limit for the boot (default: until the guest idles for 120 seconds)",
    parseSecondsToMs,
  ),
});

/** The VM, its manifest, and how to hydrate its image. */
export const VM_FLAGS = {
  ...VM_ONLY_FLAGS,
  ...MANIFEST_FLAGS,
  ...HYDRATE_FLAGS,
};

/** Converts the values of {@linkcode VM_FLAGS} to library options. */
export function workspaceVmOptions(
  given: FlagValues<typeof VM_FLAGS>,
): WorkspaceVmOptions {
  const { exports, ...flags } = pickFlagValues(VM_ONLY_FLAGS, given);
  const { allowNet, network, hostLoopback, ...vm } = flags;
  const allow = allowNet.flat();
  if ([allow.length > 0, network, hostLoopback].filter(Boolean).length > 1) {
    throw usageError(
      "--network, --network=host-loopback and --allow-net exclude each other",
      "give --allow-net for some hosts, or --network for all",
    );
  }
  return {
    ...vm,
    network: allow.length > 0
      ? { allow }
      : hostLoopback
      ? "host-loopback"
      : network || undefined,
    // `undefined`, as an empty list would not match a detached VM.
    exports: exports.length > 0 ? exports : undefined,
    hydrate: pickFlagValues(HYDRATE_FLAGS, given),
  };
}

export function pickFlagValues<F extends Flags>(
  flags: F,
  given: NoInfer<FlagValues<F>>,
): FlagValues<F> {
  const keys = Object.keys(flags);
  return Object.fromEntries(keys.map((key) => [key, given[key]])) as FlagValues<
    F
  >;
}

/** Sets the heading of the help for these flags. */
export function withFlagGroup<F extends Flags>(group: FlagGroup, flags: F): F {
  return Object.fromEntries(
    Object.entries(flags).map(([key, flag]) => [key, { ...flag, group }]),
  ) as F;
}
