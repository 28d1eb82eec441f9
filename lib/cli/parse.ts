/**
 * From argv to a typed command.
 *
 * @module
 */
import { type GuestExport, parseExport } from "../vm/shares.ts";
import type { InitOptions } from "../manifest/init.ts";
import type { PublishOptions } from "../publish/publish.ts";
import { parseExtra } from "../publish/layers.ts";
import { COMMANDS, type CommandSpec } from "./flags.ts";
import { closest, type ParsedFlags, readFlags, usage } from "./flag_values.ts";

/** How results and events are printed. */
export interface OutputFlags {
  /** As JSON Lines. */
  json: boolean;
  /** Only the result and errors. */
  quiet: boolean;
  /** A bar where a terminal can show one. */
  progress: boolean;
}

/** Flags about the registry. */
export interface RegistryFlags {
  /** `true` if plain HTTP was asked for. */
  plainHttp?: boolean;
  /** A PEM file. */
  caFile?: string;
}

/** Flags of every command that hydrates. */
export interface HydrateFlags extends RegistryFlags {
  /** The manifest, if named. */
  manifest?: string;
  /** The cache, if named. */
  cache?: string;
  /** Use no network. */
  offline: boolean;
  /** Read a cached image again. */
  verify: boolean;
  /** Get it anew. */
  force: boolean;
  /** Further attempts, if given. */
  retries?: number;
  /** In milliseconds, if given. */
  stallTimeoutMs?: number;
}

/** Flags about the machine; what is not given is the library's default. */
export interface MachineFlags {
  /** In MiB. */
  memory?: number;
  /** Count of processors. */
  cpus?: number;
  /** Directories to mount writable. */
  exports?: GuestExport[];
  /** Give it a network. */
  network?: boolean;
  /** File that keeps what the guest writes. */
  overlay?: string;
  /** In milliseconds. */
  bootTimeoutMs?: number;
}

/** What a person asked the program to do. */
export type Command =
  | { kind: "help"; command?: CommandSpec }
  | { kind: "version" }
  | { kind: "hydrate"; hydrate: HydrateFlags; output: OutputFlags }
  | {
    kind: "publish";
    path: string;
    reference: string;
    options: PublishOptions;
    manifest?: string;
    output: OutputFlags;
  }
  | { kind: "init"; options: InitOptions; output: OutputFlags }
  | {
    kind: "boot";
    hydrate: HydrateFlags;
    machine: MachineFlags;
    detach: boolean;
    fresh: boolean;
    save: boolean;
    qemuArgs: string[];
    output: OutputFlags;
  }
  | {
    kind: "run";
    hydrate: HydrateFlags;
    machine: MachineFlags;
    command: string;
    args: string[];
    fresh: boolean;
    save: boolean;
    execution?: "vm" | "host";
    timeoutMs?: number;
    env: Record<string, string>;
    cwd?: string;
    output: OutputFlags;
  }
  | { kind: "stop"; manifest?: string; cache?: string; json: boolean }
  | {
    kind: "doctor";
    manifest?: string;
    cache?: string;
    registry: RegistryFlags;
    json: boolean;
  }
  | {
    kind: "cache";
    action: "ls" | "path" | "prune";
    manifest?: string;
    cache?: string;
    keep: number;
    olderThanMs: number;
    dryRun: boolean;
    json: boolean;
  };

/** One kind of command. */
export type CommandOf<K extends Command["kind"]> = Extract<
  Command,
  { kind: K }
>;

/**
 * Reads a command line.
 *
 * @param args What follows the program's name.
 * @returns The command.
 * @throws {ToolsmithError} `usage`, with a suggestion.
 */
export function parseCommand(args: string[]): Command {
  const [name, ...rest] = args;
  if (name === undefined || name === "--help" || name === "-h") {
    return { kind: "help" };
  }
  if (name === "--version" || name === "-V") return { kind: "version" };
  if (name === "help") {
    return { kind: "help", command: rest[0] ? specOf(rest[0]) : undefined };
  }
  const spec = specOf(name);
  const given = readFlags(spec, rest);
  if (given.has("help")) return { kind: "help", command: spec };
  const [least, most] = spec.positionals;
  if (given.positionals.length < least || given.positionals.length > most) {
    const extra = given.positionals[most];
    throw usage(
      extra === undefined
        ? `${name} needs ${least === 1 ? "an argument" : `${least} arguments`}`
        : `${name} does not take "${extra}"`,
      `toolsmith ${name} ${spec.usage}`,
    );
  }
  return READERS[spec.name](given);
}

const READERS: Record<string, (given: ParsedFlags) => Command> = {
  hydrate: (given) => ({
    kind: "hydrate",
    hydrate: hydrateFlags(given),
    output: outputFlags(given),
  }),
  publish: (given) => ({
    kind: "publish",
    path: given.positionals[0],
    reference: given.positionals[1],
    options: publishOptions(given),
    manifest: given.text("write-manifest"),
    output: outputFlags(given),
  }),
  init: (given) => ({
    kind: "init",
    options: {
      ref: given.text("ref"),
      file: given.text("file"),
      name: given.text("name"),
      manifest: given.text("manifest"),
      update: given.has("update"),
      ...registryFlags(given),
    },
    output: outputFlags(given),
  }),
  boot: (given) => ({
    kind: "boot",
    hydrate: hydrateFlags(given),
    machine: machineFlags(given),
    detach: given.has("detach"),
    ...stateFlags(given),
    qemuArgs: given.rest,
    output: outputFlags(given),
  }),
  run: (given) => {
    const [command, ...args] = given.rest;
    if (command === undefined) {
      throw usage("run needs a command", "toolsmith run -- COMMAND [ARG…]");
    }
    const execution = given.text("execution");
    return {
      kind: "run",
      hydrate: hydrateFlags(given),
      machine: machineFlags(given),
      command,
      args,
      ...stateFlags(given),
      execution: execution === undefined
        ? undefined
        : given.oneOf(["vm", "host"], execution),
      timeoutMs: given.duration("timeout"),
      env: pairs("env", given),
      cwd: given.text("cwd"),
      output: outputFlags(given),
    };
  },
  stop: (given) => ({
    kind: "stop",
    manifest: given.text("manifest"),
    cache: given.text("cache"),
    json: given.has("json"),
  }),
  doctor: (given) => ({
    kind: "doctor",
    manifest: given.text("manifest"),
    cache: given.text("cache"),
    registry: registryFlags(given),
    json: given.has("json"),
  }),
  cache: (given) => ({
    kind: "cache",
    action: given.oneOf(["ls", "path", "prune"], given.positionals[0]),
    manifest: given.text("manifest"),
    cache: given.text("cache"),
    keep: given.count("keep") ?? 1,
    olderThanMs: given.age("older-than") ?? 0,
    dryRun: given.has("dry-run"),
    json: given.has("json"),
  }),
};

function publishOptions(given: ParsedFlags): PublishOptions {
  const verify = given.text("verify") ?? "manifest";
  return {
    extras: given.texts("extra").map(parseExtra),
    annotations: pairs("annotation", given),
    created: given.time("created"),
    verify: given.oneOf(["manifest", "pull"], verify),
    attempts: given.count("attempts"),
    intervalMs: given.duration("interval"),
    deadlineMs: given.duration("deadline"),
    name: given.text("name"),
    retries: given.count("retries"),
    stallTimeoutMs: given.duration("stall-timeout"),
    ...registryFlags(given),
  };
}

/** Reads the values of a flag, each KEY=VALUE. */
function pairs(flag: string, given: ParsedFlags): Record<string, string> {
  return Object.fromEntries(
    given.texts(flag).map((text) => {
      const [, key, value] = /^([^=\s]+)=(.*)$/s.exec(text) ?? [];
      if (key !== undefined) return [key, value];
      throw usage(`--${flag} ${text} is not KEY=VALUE`, `--${flag} a=b`);
    }),
  );
}

function stateFlags(given: ParsedFlags): { fresh: boolean; save: boolean } {
  return { fresh: given.has("fresh"), save: !given.has("no-save") };
}

function machineFlags(given: ParsedFlags): MachineFlags {
  const exports = given.texts("export").map(parseExport);
  const flags: MachineFlags = {
    memory: given.mebibytes("memory"),
    cpus: given.count("cpus"),
    overlay: given.text("overlay"),
    bootTimeoutMs: given.duration("boot-timeout"),
  };
  if (exports.length > 0) flags.exports = exports;
  if (given.has("network")) flags.network = true;
  return flags;
}

function hydrateFlags(given: ParsedFlags): HydrateFlags {
  return {
    manifest: given.text("manifest"),
    cache: given.text("cache"),
    offline: given.has("offline"),
    verify: given.has("verify"),
    force: given.has("force"),
    retries: given.count("retries"),
    stallTimeoutMs: given.duration("stall-timeout"),
    ...registryFlags(given),
  };
}

function registryFlags(given: ParsedFlags): RegistryFlags {
  const flags: RegistryFlags = { caFile: given.text("ca-file") };
  if (given.has("plain-http")) flags.plainHttp = true;
  return flags;
}

function outputFlags(given: ParsedFlags): OutputFlags {
  return {
    json: given.has("json"),
    quiet: given.has("quiet"),
    progress: !given.has("no-progress"),
  };
}

function specOf(name: string): CommandSpec {
  const spec = COMMANDS.find((spec) => spec.name === name);
  if (spec) return spec;
  const close = closest(name, COMMANDS.map((spec) => spec.name));
  throw usage(
    name.startsWith("-") ? `no such flag: ${name}` : `no such command: ${name}`,
    close ? `did you mean toolsmith ${close}?` : "toolsmith --help lists them",
  );
}
