/**
 * The type of a command: the data for help, parser and completion, and its code.
 */
import type { Flag, Flags, FlagValues } from "./flag.ts";
import type { CliIo } from "./io.ts";
import { COMMON_FLAGS } from "./shared_flags.ts";

/** What the parser needs to know of a command. */
export interface CommandSyntax<F extends Flags = Flags> {
  name: string;
  /** The usage line after the command's name. */
  usage: string;
  /** Its own flags, without {@linkcode COMMON_FLAGS}. */
  flags: F;
  /** A placeholder for each required argument, which selects its completion. */
  positionals?: string[];
  /**
   * Which arguments are passed on unparsed: those after `--`, or also all from the
   * first word that is not a flag. By default none.
   */
  passThrough?: "dashes" | "words";
}

export interface Subcommand<F extends Flags = Flags> extends CommandSyntax<F> {
  /** One line for the command list; no capital, no period. */
  summary: string;
  details?: string;
  /** An example command line, without the program's name. */
  example?: string;
  /** Placeholders for the words passed on; the last applies to all further ones. */
  passedOn?: string[];
  /** Runs the command and returns the exit status, 0 by default. */
  run(
    given: FlagValues<F & typeof COMMON_FLAGS>,
    io: CliIo,
    words: SubcommandArguments,
  ): Promise<number | void>;
}

/** The words of a command line that are not flags or their values. */
export interface SubcommandArguments {
  positionals: string[];
  /** Words passed on unparsed, see {@linkcode CommandSyntax.passThrough}. */
  rest: string[];
}

/** Infers the types of the flag values that `run` receives. */
export function defineSubcommand<F extends Flags>(
  command: Subcommand<F>,
): Subcommand<F> {
  return command;
}

/** Its own flags, and those of every command. */
export function allFlags({ flags }: CommandSyntax): Record<string, Flag> {
  return { ...flags, ...COMMON_FLAGS };
}
