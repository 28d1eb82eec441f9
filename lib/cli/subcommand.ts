/**
 * The type of a command: the data for help, parser and completion, and its code.
 */
import type { Flags, FlagValues } from "./flag.ts";
import type { CliIo } from "./io.ts";
import * as shared from "./shared_flags.ts";

export interface Subcommand<F extends Flags = Flags> {
  name: string;
  /** The usage line after the command's name. */
  usage: string;
  /** One line for the command list; no capital, no period. */
  summary: string;
  details?: string;
  /** An example command line, without the program's name. */
  example?: string;
  flags: F;
  /** A placeholder for each required argument, which selects its completion. */
  positionals?: string[];
  /**
   * Which arguments are passed on unparsed: those after `--`, or also all from the
   * first word that is not a flag. By default none.
   */
  passThrough?: "dashes" | "words";
  /** Placeholders for the words passed on; the last applies to all further ones. */
  passedOn?: string[];
  /** Runs the command and returns the exit status, 0 by default. */
  run(
    given: FlagValues<F & typeof shared.COMMON>,
    io: CliIo,
    /** Those that are not flags or their values; `rest` is passed on unparsed. */
    words: { positionals: string[]; rest: string[] },
  ): Promise<number | void>;
}

/** Adds the flags of every command; infers the types of the values that `run` receives. */
export function defineSubcommand<F extends Flags>(
  command: Subcommand<F>,
): Subcommand<F> {
  return { ...command, flags: { ...command.flags, ...shared.COMMON } };
}
