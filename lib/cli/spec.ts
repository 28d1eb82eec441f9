/**
 * Commands and flags as data: argv is parsed by it, and `--help` is printed from
 * it.
 *
 * @module
 */

/** What a flag is about: a heading of the help. */
export type FlagGroup = "command" | "machine" | "image" | "transfer" | "output";

/** A flag of a command. */
export interface Flag {
  /** Its name, without dashes. */
  name: string;
  /**
   * What stands for its value in the help, and says what completes it; absent for
   * a switch. Words apart by `|` are all that it can be.
   */
  value?: string;
  /** What it is about. @default {undefined} the command alone */
  group?: FlagGroup;
  /** It may be given several times. */
  many?: boolean;
  /** One line of help. */
  help: string;
}

/** A command as the help and the parser see it. */
export interface CommandSpec {
  /** Its name. */
  name: string;
  /** What follows the name, in the help. */
  usage: string;
  /** One line of help. */
  summary: string;
  /** What a person should know besides. */
  details?: string;
  /** A command line that shows what it is for. */
  example?: string;
  /** Its flags. */
  flags: Flag[];
  /**
   * What completes its arguments, as {@link Flag.value} says; the last one counts
   * for all that follow.
   *
   * @default {undefined} nothing
   */
  takes?: string[];
  /** How many positional arguments it takes, at least and at most. */
  positionals: [number, number];
  /**
   * Arguments that are passed on as they are: those after `--`, or those from
   * the first word that is no flag as well.
   *
   * @default {undefined} none
   */
  rest?: "dashes" | "words";
}

/** Flags that every command has. */
export const COMMON: Flag[] = [
  { name: "help", help: "print this", group: "output" },
];
