/**
 * What a command is: data for help and parser, a reader that makes a typed
 * request of argv, and the work.
 *
 * @module
 */
import type { ParsedFlags } from "./flag_values.ts";
import type { Io } from "./io.ts";
import type { CommandSpec } from "./spec.ts";

/** A command of the program. */
export interface Command<Request = unknown> extends CommandSpec {
  /**
   * Reads what is given, before anything runs.
   *
   * @throws {ToolsmithError} `usage`.
   */
  parse(given: ParsedFlags): Request;
  /** Does the work, and returns the exit status. */
  run(request: Request, io: Io): Promise<number>;
}
