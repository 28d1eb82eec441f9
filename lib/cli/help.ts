/**
 * The help, written from the table of commands.
 *
 * @module
 */
import { COMMANDS } from "./commands.ts";
import { type CommandSpec, COMMON } from "./spec.ts";

/**
 * Writes the help.
 *
 * @param command The command to explain, or `undefined` for the program.
 * @returns The text, with a newline at its end.
 */
export function helpText(command?: CommandSpec): string {
  if (!command) {
    const rows = COMMANDS.map(({ name, summary }) => [name, summary]);
    return `Usage: toolsmith COMMAND [flags]

Gets a verified VM image from an OCI registry onto this host, and runs tools in it.

Commands:
${columns(rows)}

toolsmith COMMAND --help explains a command; toolsmith --version prints the version.
`;
  }
  const flags = [...command.flags, ...COMMON].map(({ name, value, help }) => [
    value ? `--${name} ${value}` : `--${name}`,
    help,
  ]);
  return `Usage: toolsmith ${command.name} ${command.usage}

${sentence(command.summary)}
${command.details ? `${command.details}\n` : ""}
Flags:
${columns(flags)}
`;
}

function sentence(text: string): string {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

function columns(rows: string[][]): string {
  const width = Math.max(...rows.map(([left]) => left.length));
  return rows
    .map(([left, right]) => `  ${left.padEnd(width)}  ${right}`)
    .join("\n");
}
