/**
 * Commands and flags as data: argv is parsed by it, and `--help` is printed from
 * it.
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
  /** Its flags. */
  flags: Flag[];
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
  { name: "help", help: "print this" },
];
