/** Splits a command line into flags and other words, for the parser and for completion. */
import type { Subcommand } from "./subcommand.ts";
import type { Flag } from "./flag.ts";

/** A flag on a command line. */
export interface GivenFlag {
  /** With dashes, as it was given. */
  name: string;
  /** Absent for an unknown flag, or a switch that is given a value. */
  flag?: Flag;
  /** Absent for a switch, or if the value is missing. */
  value?: string;
}

/**
 * Splits the words after a command's name. `rest` are those to pass on unparsed;
 * `undefined` if neither `--` nor such a word is given.
 */
export function splitArguments(command: Subcommand, args: string[]) {
  const known = Object.values(command.flags);
  const flags: GivenFlag[] = [];
  const positionals: string[] = [];
  for (let at = 0; at < args.length; at++) {
    const arg = args[at].replace(/^-h(?==|$)/, "--help");
    if (arg === "--") return { flags, positionals, rest: args.slice(at + 1) };
    if (!arg.startsWith("-") || arg === "-") {
      if (command.passThrough === "words") {
        return { flags, positionals, rest: args.slice(at) };
      }
      positionals.push(arg);
      continue;
    }
    const [name, inline] = arg.split(/=(.*)/s);
    // The name of a switch may contain `=`.
    const flag = known.find((it) =>
      `--${it.name}` === (it.placeholder ? name : arg)
    );
    const next = args.at(at + 1);
    const takesNext = flag?.placeholder && inline === undefined &&
      !next?.startsWith("-");
    flags.push({ name, flag, value: takesNext ? next : inline });
    if (takesNext) at++;
  }
  return { flags, positionals, rest: undefined };
}
