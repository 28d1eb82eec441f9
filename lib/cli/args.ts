/**
 * From argv to a typed command.
 *
 * @module
 */
import { COMMANDS, type CommandSpec } from "./flags.ts";
import { closest, type Given, readFlags, usage } from "./given.ts";

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

/** What a person asked the program to do. */
export type Command =
  | { kind: "help"; command?: CommandSpec }
  | { kind: "version" }
  | { kind: "hydrate"; hydrate: HydrateFlags; output: OutputFlags }
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
  switch (name) {
    case "hydrate":
      return {
        kind: "hydrate",
        hydrate: hydrateFlags(given),
        output: outputFlags(given),
      };
    case "doctor":
      return {
        kind: "doctor",
        manifest: given.text("manifest"),
        cache: given.text("cache"),
        registry: registryFlags(given),
        json: given.has("json"),
      };
    default: {
      const [action] = given.positionals;
      if (action !== "ls" && action !== "path" && action !== "prune") {
        const close = closest(action, ["ls", "path", "prune"]);
        throw usage(
          `cache has no "${action}"`,
          close ? `did you mean ${close}?` : "it has ls, path and prune",
        );
      }
      return {
        kind: "cache",
        action,
        manifest: given.text("manifest"),
        cache: given.text("cache"),
        keep: given.count("keep") ?? 1,
        olderThanMs: given.age("older-than") ?? 0,
        dryRun: given.has("dry-run"),
        json: given.has("json"),
      };
    }
  }
}

function hydrateFlags(given: Given): HydrateFlags {
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

function registryFlags(given: Given): RegistryFlags {
  const flags: RegistryFlags = { caFile: given.text("ca-file") };
  if (given.has("plain-http")) flags.plainHttp = true;
  return flags;
}

function outputFlags(given: Given): OutputFlags {
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
