/**
 * The type of a command: the data for help, parser and completion, and its code.
 */
import { type Flags, type FlagValues, switchFlag } from "./flag.ts";
import type { CliIo } from "./io.ts";

export interface Subcommand<F extends Flags = Flags> {
  name: string;
  /** The usage line after the command's name. */
  usage: string;
  /** One line for the command list; no capital, no period. */
  summary: string;
  details?: string;
  /** An example command line, without the program's name. */
  example?: string;
  /** Its own flags, without {@linkcode COMMON_FLAGS}. */
  flags: F;
  /**
   * Placeholders that select the completion of each argument, as a flag's does; the
   * last one applies to all further arguments. Without any, nothing is completed.
   */
  argumentPlaceholders?: string[];
  /** Minimum and maximum count of positional arguments. @default {[0, 0]} */
  positionalCount?: [number, number];
  /**
   * Which arguments are passed on unparsed: those after `--`, or also all from the
   * first word that is not a flag. By default none.
   */
  passThrough?: "dashes" | "words";
  /** Runs the command and returns the exit status. */
  run(
    given: FlagValues<F>,
    io: CliIo,
    words: SubcommandArguments,
  ): Promise<number>;
}

/** The words of a command line that are not flags or their values. */
export interface SubcommandArguments {
  positionals: string[];
  /** Words passed on unparsed, see {@linkcode Subcommand.passThrough}. */
  rest: string[];
}

/** Infers the types of the flag values that `run` receives. */
export function defineSubcommand<F extends Flags>(
  command: Subcommand<F>,
): Subcommand<F> {
  return command;
}

export const COMMON_FLAGS = {
  verbose: {
    ...switchFlag(
      "verbose",
      "print the causes of an error, and what the network decided",
    ),
    group: "output",
  },
  help: { ...switchFlag("help", "print this help"), group: "output" },
} satisfies Flags;
