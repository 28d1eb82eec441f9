/**
 * From argv to a command and its typed request.
 *
 * @module
 */
import type { Command } from "./command.ts";
import { COMMANDS } from "./commands.ts";
import { ParsedFlags, usage } from "./flag_values.ts";
import type { CommandSpec } from "./spec.ts";
import { closest } from "./suggest.ts";

/** What a person asked the program to do. */
export type Invocation =
  | { kind: "help"; command?: CommandSpec }
  | { kind: "version"; json: boolean }
  | {
    kind: "command";
    command: Command;
    /** What the command's `parse` made of the arguments. */
    request: unknown;
    /** Whether the result is to be JSON. */
    json: boolean;
  };

/**
 * Reads a command line.
 *
 * @param args What follows the program's name.
 * @returns What to do.
 * @throws {ToolsmithError} `usage`, with a suggestion.
 */
export function parseCommandLine(args: string[]): Invocation {
  const [name, ...rest] = args;
  if (name === undefined || name === "--help" || name === "-h") {
    return { kind: "help" };
  }
  if (name === "--version" || name === "-V") {
    return { kind: "version", json: rest.includes("--json") };
  }
  if (name === "help") {
    return rest[0]
      ? { kind: "help", command: commandOf(rest[0]) }
      : { kind: "help" };
  }
  const command = commandOf(name);
  const given = new ParsedFlags(command, rest);
  if (given.has("help")) return { kind: "help", command };
  const [least, most] = command.positionals;
  if (given.positionals.length < least || given.positionals.length > most) {
    const extra = given.positionals[most];
    throw usage(
      extra === undefined
        ? `${name} needs ${least === 1 ? "an argument" : `${least} arguments`}`
        : `${name} does not take "${extra}"`,
      `toolsmith ${name} ${command.usage}`,
    );
  }
  const request = command.parse(given);
  return { kind: "command", command, request, json: given.has("json") };
}

function commandOf(name: string): Command {
  const command = COMMANDS.find((command) => command.name === name);
  if (command) return command;
  const close = closest(name, COMMANDS.map(({ name }) => name));
  throw usage(
    name.startsWith("-") ? `no such flag: ${name}` : `no such command: ${name}`,
    close ? `did you mean toolsmith ${close}?` : "toolsmith --help lists them",
  );
}
