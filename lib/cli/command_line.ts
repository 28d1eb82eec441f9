/** Parses argv into a command, its flag values and its arguments. */
import { COMMANDS } from "./commands.ts";
import type { Flag, Flags, FlagValues } from "./flag.ts";
import { LIST_PARSERS, type Parsers, VALUE_PARSERS } from "./flag_values.ts";
import * as shared from "./shared_flags.ts";
import { type GivenFlag, splitArguments } from "./split_arguments.ts";
import type { Subcommand } from "./subcommand.ts";
import { closestMatch, usageError } from "./usage_error.ts";

export type Invocation = ReturnType<typeof parseCommandLine>;

export function parseCommandLine(args: string[]) {
  assertUtf8Args(args);
  const help = (command?: Subcommand) => (
    { kind: "help" as const, command, given: {} }
  );
  const [name, ...rest] = args;
  if (name === undefined || name === "--help" || name === "-h") return help();
  if (name === "--version" || name === "-V") {
    const given = { json: rest.includes("--json") };
    return { kind: "version" as const, given };
  }
  if (name === "help") return help(rest[0] ? findCommand(rest[0]) : undefined);
  const command = findCommand(name);
  const read = parseCommandArgs(command, rest);
  return read ? { kind: "command" as const, command, ...read } : help(command);
}

/** Parses the words after a command's name; returns `undefined` if they ask for help. */
function parseCommandArgs(command: Subcommand, args: string[]) {
  const { name, usage, passThrough, positionals: expected = [] } = command;
  const { flags, positionals, rest = [] } = splitArguments(command, args);
  const unknown = flags.find(({ flag }) => !flag);
  if (unknown) throw unknownFlagError(unknown, command);
  if (flags.some(({ flag }) => flag === shared.COMMON.help)) return undefined;
  const given: Record<string, unknown> = {};
  for (const [key, flag] of Object.entries(command.flags)) {
    const found = flags.filter((it) => it.flag === flag);
    if (found.length > 0) given[key] = parseFlag(flag, found);
  }
  if (rest.length > 0 && !passThrough) {
    throw usageError(
      `${name} takes nothing after --`,
      `see toolsmith ${name} --help`,
    );
  }
  if (positionals.length !== expected.length) {
    const { length } = expected;
    const extra = positionals[length];
    throw usageError(
      extra === undefined
        ? `${name} needs ${
          length === 1 ? "an argument" : `${length} arguments`
        }`
        : `${name} does not accept "${extra}"`,
      `usage: toolsmith ${name} ${usage}`,
    );
  }
  return {
    given: given as FlagValues<Flags & typeof shared.COMMON>,
    words: { positionals, rest },
  };
}

function parseFlag({ name, placeholder }: Flag, given: GivenFlag[]): unknown {
  if (!placeholder) return !name.startsWith("no-");
  const values = given.map(({ value = "" }) => value);
  if (values.includes("")) {
    throw usageError(
      `--${name} needs a value`,
      `write --${name} ${placeholder}`,
    );
  }
  const { [placeholder]: parseAll }: Parsers<string[]> = LIST_PARSERS;
  if (parseAll) return parseAll(values, name);
  if (values.length > 1) {
    throw usageError(
      `--${name} is given ${values.length} times`,
      `give --${name} once`,
    );
  }
  const { [placeholder]: parse }: Parsers<string> = VALUE_PARSERS;
  return parse ? parse(values[0], name) : values[0];
}

function unknownFlagError(
  { name, value }: GivenFlag,
  command: Subcommand,
) {
  const names = Object.values(command.flags).map((flag) => flag.name);
  const switches = names.filter((it) => `--${it.split("=")[0]}` === name);
  if (switches.length > 0) {
    const words = switches.map((it) => `--${it}`).join(" or ");
    return usageError(`${name} does not accept "${value}"`, `write ${words}`);
  }
  const close = closestMatch(name.replace(/^-+/, ""), names);
  return usageError(
    `${command.name} has no flag ${name}`,
    close ? `did you mean --${close}?` : `see toolsmith ${command.name} --help`,
  );
}

function findCommand(name: string): Subcommand {
  const command = COMMANDS.find((command) => command.name === name);
  if (command) return command;
  const close = closestMatch(name, COMMANDS.map(({ name }) => name));
  throw usageError(
    name.startsWith("-") ? `no such flag: ${name}` : `no such command: ${name}`,
    close
      ? `did you mean toolsmith ${close}?`
      : "see toolsmith --help for the list",
  );
}

/**
 * Rejects arguments that Deno altered: it replaces bytes that are not UTF-8 with
 * U+FFFD, so the argument would name another file. Without `--allow-all` on Linux, a
 * literal U+FFFD is rejected too.
 */
export function assertUtf8Args(args: readonly string[]): void {
  const isDoubtful = (arg: string) => arg.includes("\ufffd");
  if (!args.some(isDoubtful)) return;
  // As Latin-1, because it has a character for every byte.
  const latin1 = new TextDecoder("latin1");
  let given: string[] = [];
  try {
    given = latin1.decode(Deno.readFileSync("/proc/self/cmdline")).split("\0");
  } catch {
    // Rejects every doubtful argument.
  }
  const isGiven = (arg: string) =>
    given.includes(latin1.decode(new TextEncoder().encode(arg)));
  const at = args.findIndex((arg) => isDoubtful(arg) && !isGiven(arg));
  if (at === -1) return;
  throw usageError(
    `Argument ${at + 1} is not UTF-8: ${args[at]}`,
    "use UTF-8 file names: other bytes cannot be passed on exactly",
  );
}
