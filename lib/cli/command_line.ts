/** Parses argv into a command, its flag values and its arguments. */
import { parseArgs } from "@std/cli/parse-args";
import { COMMON_FLAGS, type Subcommand } from "./subcommand.ts";
import { COMMANDS } from "./commands.ts";
import {
  closestMatch,
  type Flag,
  type Flags,
  type FlagValues,
  usageError,
} from "./flag.ts";

export type Invocation = ReturnType<typeof parseCommandLine>;

export function parseCommandLine(args: string[]) {
  assertUtf8Args(args);
  const help = (command?: Subcommand) => ({ kind: "help" as const, command });
  const [name, ...rest] = args;
  if (name === undefined || name === "--help" || name === "-h") return help();
  if (name === "--version" || name === "-V") {
    return { kind: "version" as const, json: rest.includes("--json") };
  }
  if (name === "help") return help(rest[0] ? findCommand(rest[0]) : undefined);
  const command = findCommand(name);
  const read = parseCommandArgs(command, rest);
  if (!read) return help(command);
  const json = read.given.json === true;
  return { kind: "command" as const, command, ...read, json };
}

/**
 * Parses the words after a command's name; returns `undefined` if they ask for help.
 * `verbose` is whether to print the causes of an error.
 */
export function parseCommandArgs<F extends Flags>(
  command: Omit<Subcommand<F>, "run">,
  args: string[],
) {
  const { name } = command;
  const { valuesOf, ...words } = splitFlagsFromWords(command, args);
  if (valuesOf(COMMON_FLAGS.help).length > 0) return undefined;
  const [min, max] = command.positionalCount ?? [0, 0];
  if (words.positionals.length < min || words.positionals.length > max) {
    const extra = words.positionals[max];
    throw usageError(
      extra === undefined
        ? `${name} needs ${min === 1 ? "an argument" : `${min} arguments`}`
        : `${name} does not accept "${extra}"`,
      `usage: toolsmith ${name} ${command.usage}`,
    );
  }
  const given = Object.fromEntries(
    Object.entries(command.flags)
      .map(([key, flag]) => [key, flag.parse(valuesOf(flag))]),
  ) as FlagValues<F>;
  return { given, words, verbose: valuesOf(COMMON_FLAGS.verbose).length > 0 };
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

/** Cannot occur in a process's argument. */
const NOT_A_VALUE_MARK = "\0";

/** parseArgs() would take any text after = as a switch's value. */
const keyOf = (name: string) => name.replaceAll("=", NOT_A_VALUE_MARK);

function splitFlagsFromWords(command: Omit<Subcommand, "run">, args: string[]) {
  const flags: Flag[] = Object.values({ ...command.flags, ...COMMON_FLAGS });
  const namesOf = (flags: Flag[]) => flags.map(({ name }) => name);
  const switches = namesOf(flags.filter(({ placeholder }) => !placeholder));
  const valued = namesOf(flags.filter(({ placeholder }) => placeholder));
  const isSwitch = (arg = "") =>
    switches.some((name) => `--${name}` === arg.replace(/=.*/s, ""));
  // parseArgs() would skip the "no-" of --no-network=none.
  const isNegated = (arg: string) => /^--no-[^=]*=/.test(arg);
  const long = args.map((arg) => arg.replace(/^-h(?==|$)/, "--help"));
  // parseArgs() takes `true` and `false` after a switch as the switch's value.
  const marked = long.map((arg, at) =>
    /^(true|false)$/.test(arg) && isSwitch(long[at - 1])
      ? arg + NOT_A_VALUE_MARK
      : isSwitch(arg) || isNegated(arg)
      ? keyOf(arg)
      : arg
  );
  const parsed = parseArgs(marked, {
    string: [...valued, "_"],
    boolean: switches.map(keyOf),
    collect: valued,
    alias: { help: "h" },
    "--": true,
    stopEarly: command.passThrough === "words",
    unknown: (arg: string, key?: string) => {
      if (key === undefined) return true;
      const given = arg.replaceAll(NOT_A_VALUE_MARK, "=");
      throw unknownFlagError(given, command, flags);
    },
  });
  const values = new Map(
    flags.map((it) => [it.name, checkedFlagValues(it, parsed[keyOf(it.name)])]),
  );
  const words = parsed._.map((word) =>
    String(word).replace(NOT_A_VALUE_MARK, "")
  );
  const dashesAt = args.includes("--") ? args.indexOf("--") : args.length;
  // A `--` after the first word belongs to the command that is run.
  const runsCommand = command.passThrough === "words" && words.length > 0;
  const rest = args.slice(runsCommand ? dashesAt - words.length : dashesAt + 1);
  if (rest.length > 0 && !command.passThrough) {
    throw usageError(
      `${command.name} takes nothing after --`,
      `see toolsmith ${command.name} --help`,
    );
  }
  return {
    positionals: runsCommand ? [] : words,
    rest,
    valuesOf: ({ name }: Flag) => values.get(name)!,
  };
}

/** Returns the values of a flag; a given switch has one, its name. */
function checkedFlagValues(
  { name, placeholder, repeatable }: Flag,
  found: unknown,
): string[] {
  if (!placeholder) return found === true ? [name] : [];
  const values = Array.isArray(found) ? found.map(String) : [];
  if (values.includes("")) {
    throw usageError(
      `--${name} needs a value`,
      `write --${name} ${placeholder}`,
    );
  }
  if (values.length > 1 && !repeatable) {
    throw usageError(
      `--${name} is given ${values.length} times`,
      `give --${name} once`,
    );
  }
  return values;
}

function unknownFlagError(
  arg: string,
  command: { name: string },
  flags: Flag[],
) {
  const [name, value] = arg.split(/=(.*)/s);
  const help = `see toolsmith ${command.name} --help`;
  const known = flags.filter((it) => `--${it.name.split("=")[0]}` === name);
  // Such as `--manifest=`, without a value.
  if (known[0]?.placeholder) {
    return usageError(`${name} needs a value after =`, help);
  }
  if (known[0]) {
    const words = known.map((it) => `--${it.name}`).join(" or ");
    return usageError(`${name} does not accept "${value}"`, `write ${words}`);
  }
  const names = flags.map(({ name }) => name);
  const close = closestMatch(name.replace(/^-+/, ""), names);
  return usageError(
    `${command.name} has no flag ${name}`,
    close ? `did you mean --${close}?` : help,
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
