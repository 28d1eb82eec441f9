/**
 * Flags that several commands share, keyed by the library's option names. Import them as
 * `shared`.
 */
import type {
  RunInVmOptions,
  WorkspaceVmOptions,
} from "../run/workspace_vm.ts";
import { defineFlags, type FlagValues } from "./flag.ts";
import { usageError } from "./usage_error.ts";

/** Of every command. */
export const COMMON = defineFlags("Output", {
  verbose:
    "--verbose  print the causes of an error, and what the network decided",
  help: "--help  print this help",
});

export const MANIFEST = defineFlags("Image", {
  manifest:
    "--manifest PATH  manifest (default: TOOLSMITH_MANIFEST, then .toolsmith/tools.json)",
});

export const CACHE = defineFlags("Image", {
  cache:
    "--cache DIR  cache directory (default: TOOLSMITH_CACHE, then .toolsmith/cache)",
});

export const REGISTRY = defineFlags("Transfer", {
  plainHttp:
    "--plain-http  use plain HTTP for the registry (always done for a loopback host)",
  caFile: "--ca-file FILE  trust the certificate authority in this PEM file",
});

export const TRUST = defineFlags("Image", {
  trustedRoot:
    "--trusted-root FILE  check signatures with these roots (default: Sigstore's and GitHub's)",
});

export const TRANSFER = defineFlags("Transfer", {
  retries: "--retries N  retries after a transient failure (default 3)",
  stallTimeoutMs:
    "--stall-timeout SECONDS  abort a transfer without progress after SECONDS (default 60)",
});

export const JSON = defineFlags("Output", {
  json: "--json  print events as JSON Lines, the result last",
});

export const PROGRESS = defineFlags("Output", {
  quiet: "--quiet  print only the result and errors",
  progress: "--no-progress  draw no progress bar",
});

export const OUTPUT = { ...JSON, ...PROGRESS };

export const IMAGE_ARCH = defineFlags("Image", {
  arch:
    "--arch ARCH  image of a multi-platform index: amd64 or arm64 (default: the host's)",
});

/** How to fetch an image, and where to put it. */
export const FETCH = {
  ...MANIFEST,
  ...CACHE,
  ...TRUST,
  ...TRANSFER,
  ...REGISTRY,
};

export const HYDRATE = {
  ...FETCH,
  ...defineFlags("Image", {
    offline: "--offline  use no network; fail if the image is not cached",
    verify: "--verify  read the cached image again and compare its digest",
    force: "--force  re-download even if cached",
    base:
      "--base FILE  copy unchanged bytes from this older image (default: the one last used)",
  }),
  ...defineFlags("Transfer", {
    connections:
      "--connections 1-99  parallel connections for an image of 64 MiB or more (default 4)",
  }),
};

export const COMMAND = defineFlags("Command", {
  timeoutMs:
    "--timeout SECONDS  stop after SECONDS, download included, with exit status 124",
  env: "--env NAME=VALUE  set a variable for the command",
  cwd:
    "--cwd DIR  working directory in the guest, absolute or relative to this one",
});

/** The VM, its manifest, and how to hydrate its image. */
export const VM = {
  ...defineFlags("VM", {
    memory: "--memory SIZE  memory of the VM (default 512M)",
    cpus: "--cpus N  processors of the VM (default 2, at most the host's)",
    arch:
      "--arch amd64|arm64  processor architecture of the VM (default: the image's)",
    accelerator:
      "--accel kvm|hvf|tcg  accelerator (default: TOOLSMITH_ACCEL, then the fastest that works)",
    firmware:
      "--firmware WHICH  bios, uefi or a file (default: what the image's boot loader needs)",
    exports: "--export DIR[:TAG]  mount DIR writable in the guest at /mnt/TAG",
    copyLimit:
      "--copy-limit SIZE  largest workspace to copy if it cannot be mounted (default 128M)",
    allowNet:
      "--allow-net HOST[:PORT]  let the VM reach this host, *.HOST or IP; several with commas",
    network: "--network  let the VM reach everything but this host",
    hostLoopback:
      "--network=host-loopback  let the VM reach everything, services on this host included",
    overlay:
      "--overlay FILE  keep the guest's disk writes in this overlay file",
    fresh: "--fresh  boot even if a snapshot can be restored",
    save: "--no-save  save no snapshot for the next start",
    bootTimeoutMs:
      "--boot-timeout SECONDS  time limit for the boot (default: until the guest idles for 120 seconds)",
  }),
  ...HYDRATE,
};

/** Converts the values of {@linkcode COMMAND} and {@linkcode VM} to library options. */
export function runInVmOptions(
  given: FlagValues<typeof COMMAND & typeof VM>,
  { env, signal, onEvent }: WorkspaceVmOptions,
): RunInVmOptions {
  const { timeoutMs, env: variables, cwd, ...vmFlags } = given;
  const vm = { ...workspaceVmOptions(vmFlags), env, onEvent };
  return { timeoutMs, env: variables, cwd, hostCwd: Deno.cwd(), signal, vm };
}

/** Converts the values of {@linkcode VM} to library options. */
export function workspaceVmOptions(
  given: FlagValues<typeof VM>,
): WorkspaceVmOptions {
  const { allowNet, network, hostLoopback, ...options } = given;
  const networks: WorkspaceVmOptions["network"][] = [
    allowNet && { allow: allowNet },
    network,
    hostLoopback && "host-loopback",
  ];
  const [chosen, ...others] = networks.filter((it) => it !== undefined);
  if (others.length > 0) {
    throw usageError(
      "--network, --network=host-loopback and --allow-net exclude each other",
      "give --allow-net for some hosts, or --network for all",
    );
  }
  return { ...options, network: chosen, hydrate: options };
}
