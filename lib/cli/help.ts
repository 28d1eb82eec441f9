/**
 * The help, written from the table of commands.
 *
 * @module
 */
import { COMMANDS } from "./commands.ts";
import { type CommandSpec, COMMON, type Flag, type FlagGroup } from "./spec.ts";

/** In the order in which they are printed. */
const HEADINGS: [FlagGroup | undefined, string][] = [
  [undefined, "Flags"],
  ["command", "The command"],
  ["machine", "The machine"],
  ["image", "The image"],
  ["transfer", "The transfer"],
  ["output", "Output"],
];

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
  const { name, usage, summary, details, example } = command;
  return `Usage: toolsmith ${name} ${usage}

${sentence(summary)}
${details ? `${details}\n` : ""}${
    example ? `\nExample:\n  toolsmith ${example}\n` : ""
  }
${flagGroups([...command.flags, ...COMMON])}
`;
}

/** The flags, each below the heading of its group. */
function flagGroups(flags: Flag[]): string {
  const rows = flags.map(({ name, value, help }) => [
    value ? `--${name} ${value}` : `--${name}`,
    help,
  ]);
  const lines = columns(rows).split("\n");
  return HEADINGS.flatMap(([group, heading]) => {
    const own = lines.filter((_, index) => flags[index].group === group);
    return own.length > 0 ? [[`${heading}:`, ...own].join("\n")] : [];
  }).join("\n\n");
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
