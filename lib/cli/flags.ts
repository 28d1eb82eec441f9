/**
 * The flags and commands of the program, as data: argv is parsed by it, and
 * `--help` is printed from it.
 *
 * @module
 */

/** A flag of a command. */
export interface Flag {
  /** Its name, without dashes. */
  name: string;
  /** What stands for its value in the help; absent for a switch. */
  value?: string;
  /** It may be given several times. */
  many?: boolean;
  /** One line of help. */
  help: string;
}

/** A command of the program. */
export interface CommandSpec {
  /** Its name. */
  name: string;
  /** What follows the name, in the help. */
  usage: string;
  /** One line of help. */
  summary: string;
  /** What a person should know besides. */
  details?: string;
  /** Its flags. */
  flags: Flag[];
  /** How many positional arguments it takes, at least and at most. */
  positionals: [number, number];
  /** Whether it takes what follows `--`. */
  rest?: boolean;
}

const MANIFEST: Flag[] = [
  {
    name: "manifest",
    value: "PATH",
    help: "the manifest; else TOOLSMITH_MANIFEST, else .toolsmith/tools.json",
  },
];

const CACHE: Flag[] = [
  {
    name: "cache",
    value: "DIR",
    help: "the cache; else TOOLSMITH_CACHE, else .toolsmith/cache",
  },
];

const REGISTRY: Flag[] = [
  {
    name: "plain-http",
    help: "reach the registry by plain HTTP; loopback registries always are",
  },
  {
    name: "ca-file",
    value: "FILE",
    help: "trust the certificate authority in this PEM file",
  },
];

const PATIENCE: Flag[] = [
  {
    name: "retries",
    value: "N",
    help: "try again so often after a failure that may pass (3)",
  },
  {
    name: "stall-timeout",
    value: "SECONDS",
    help: "give up a transfer that has not grown for so long (60)",
  },
];

const OUTPUT: Flag[] = [
  { name: "json", help: "print events as JSON Lines, the result last" },
  { name: "quiet", help: "print nothing but the result and errors" },
  { name: "no-progress", help: "draw no progress bar" },
];

const HYDRATE: Flag[] = [
  ...MANIFEST,
  ...CACHE,
  { name: "offline", help: "use no network: cached, or an error" },
  {
    name: "verify",
    help: "read the cached image again and compare its digest",
  },
  { name: "force", help: "get the image anew although it is cached" },
  ...PATIENCE,
  ...REGISTRY,
  ...OUTPUT,
];

const MACHINE: Flag[] = [
  { name: "memory", value: "SIZE", help: "memory of the machine (512M)" },
  {
    name: "cpus",
    value: "N",
    help: "its processors (2, or what the host has)",
  },
  {
    name: "export",
    value: "DIR[:TAG]",
    many: true,
    help: "mount this directory writable, at /mnt/TAG",
  },
  {
    name: "network",
    help: "give it a network; it then reaches all that this host reaches",
  },
  {
    name: "overlay",
    value: "FILE",
    help: "keep what the guest writes to its disk in this file",
  },
  { name: "fresh", help: "boot, although a saved machine could be restored" },
  { name: "no-save", help: "do not save the machine for the next start" },
  {
    name: "boot-timeout",
    value: "SECONDS",
    help: "give up a guest that is not ready after so long (120)",
  },
];

/** Every command, in the order of the help. */
export const COMMANDS: CommandSpec[] = [
  {
    name: "hydrate",
    usage: "[flags]",
    summary: "get the manifest's image into the cache, verified",
    details:
      "Prints the image's path. Private packages of ghcr.io need GHCR_TOKEN, and\nGHCR_USERNAME or GITHUB_ACTOR; other registries: oras login.",
    flags: HYDRATE,
    positionals: [0, 0],
  },
  {
    name: "boot",
    usage: "[flags] [-- QEMU arguments]",
    summary: "hydrate, and boot the image with its console on this terminal",
    details:
      "The workspace is mounted read-only at /mnt/work. Ctrl-C powers the guest down.\nNothing that it writes is kept, unless --overlay says where.",
    flags: [
      {
        name: "detach",
        help: "return when the guest is ready; run uses it, stop ends it",
      },
      ...MACHINE,
      ...HYDRATE,
    ],
    positionals: [0, 0],
    rest: true,
  },
  {
    name: "run",
    usage: "[flags] -- COMMAND [ARG…]",
    summary: "run a command in the image; its exit status is the command's",
    details:
      "It runs in the workspace, read-only at /mnt/work. A machine that was booted with\n--detach is used, else one is booted for the command.",
    flags: [
      {
        name: "execution",
        value: "WHERE",
        help: "vm or host; else TOOLSMITH_EXECUTION, else vm",
      },
      {
        name: "timeout",
        value: "SECONDS",
        help: "end the command after so long, with exit status 124",
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
        help: "the command's directory, in the guest",
      },
      ...MACHINE,
      ...HYDRATE,
    ],
    positionals: [0, 0],
    rest: true,
  },
  {
    name: "stop",
    usage: "[flags]",
    summary: "power down the machine that boot --detach started",
    flags: [...MANIFEST, ...CACHE, OUTPUT[0]],
    positionals: [0, 0],
  },
  {
    name: "publish",
    usage: "IMAGE.qcow2 REGISTRY/OWNER/REPO:VERSION [flags]",
    summary: "push an image to a registry, and wait until it is served back",
    details:
      "ghcr.io needs GHCR_TOKEN with the scope write:packages, and GHCR_USERNAME or\nGITHUB_ACTOR; in GitHub Actions GITHUB_TOKEN serves too.",
    flags: [
      {
        name: "extra",
        value: "PATH:TYPE",
        many: true,
        help: "publish this file too, with this media type",
      },
      {
        name: "annotation",
        value: "KEY=VALUE",
        many: true,
        help: "annotate the artifact's manifest",
      },
      {
        name: "created",
        value: "TIME",
        help: "time of creation; else SOURCE_DATE_EPOCH, else the file's time",
      },
      {
        name: "verify",
        value: "HOW",
        help: "manifest: compare digests (the default); pull: the bytes too",
      },
      { name: "attempts", value: "N", help: "ask the registry so often (20)" },
      {
        name: "interval",
        value: "SECONDS",
        help: "pause between attempts; it grows up to fivefold (6)",
      },
      {
        name: "deadline",
        value: "SECONDS",
        help: "give up asking after so long (600)",
      },
      {
        name: "write-manifest",
        value: "PATH",
        help: "name the image in this tools.json, keeping all else in it",
      },
      {
        name: "name",
        value: "NAME",
        help: "the image's name for consumers; else the repository's last part",
      },
      ...PATIENCE,
      ...REGISTRY,
      ...OUTPUT,
    ],
    positionals: [2, 2],
  },
  {
    name: "init",
    usage: "--ref REF | --file IMAGE.qcow2 [flags]",
    summary: "write .toolsmith/tools.json for an image",
    flags: [
      {
        name: "ref",
        value: "REF",
        help: "an artifact; its registry is asked for the image's digest",
      },
      { name: "file", value: "PATH", help: "an image of this host" },
      { name: "name", value: "NAME", help: "the image's name" },
      ...MANIFEST,
      {
        name: "update",
        help: "change the image of a manifest that exists, keeping all else",
      },
      ...REGISTRY,
      ...OUTPUT,
    ],
    positionals: [0, 0],
  },
  {
    name: "doctor",
    usage: "[flags]",
    summary: "check whether this host can do all that",
    flags: [...MANIFEST, ...CACHE, ...REGISTRY, OUTPUT[0]],
    positionals: [0, 0],
  },
  {
    name: "cache",
    usage: "ls | path | prune [flags]",
    summary: "list, locate or clear what is cached",
    details:
      "prune never removes what the manifest names, nor what another process is getting.",
    flags: [
      ...MANIFEST,
      ...CACHE,
      {
        name: "keep",
        value: "N",
        help: "prune: keep the N newest entries of each image (1)",
      },
      {
        name: "older-than",
        value: "AGE",
        help: "prune: only entries unused for so long, such as 12h or 30d",
      },
      { name: "dry-run", help: "prune: say what would go, remove nothing" },
      OUTPUT[0],
    ],
    positionals: [1, 1],
  },
];

/** Flags that every command has. */
export const COMMON: Flag[] = [
  { name: "help", help: "print this" },
];
