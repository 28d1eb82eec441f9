/**
 * The command table, in the order of the help, and the help generated from it. A new
 * command is a file in commands/ and a line here.
 */
import type { Flag } from "./flag.ts";
import type { Subcommand } from "./subcommand.ts";
import { bootCommand } from "./commands/boot.ts";
import { cacheCommand } from "./commands/cache.ts";
import { createCompletionsCommand } from "./commands/completions.ts";
import { doctorCommand } from "./commands/doctor.ts";
import { hydrateCommand } from "./commands/hydrate.ts";
import { initCommand } from "./commands/init.ts";
import { mcpCommand } from "./commands/mcp.ts";
import { publishCommand } from "./commands/publish.ts";
import { runCommand, shellCommand } from "./commands/run.ts";
import { stopCommand } from "./commands/stop.ts";

export const COMMANDS: Subcommand[] = [
  hydrateCommand,
  bootCommand,
  runCommand,
  shellCommand,
  mcpCommand,
  stopCommand,
  publishCommand,
  initCommand,
  doctorCommand,
  cacheCommand,
  createCompletionsCommand(() => COMMANDS),
];

/** Returns the help of a command, or of the program, with a final newline. */
export function helpText(command?: Subcommand): string {
  if (!command) {
    const rows = COMMANDS.map(({ name, summary }) => [name, summary]);
    return `Usage: toolsmith COMMAND [flags]

Downloads a verified VM image from an OCI registry to this host and runs tools in it.

Commands:
${alignColumns(rows).join("\n")}

toolsmith COMMAND --help explains a command; toolsmith --version prints the version.
`;
  }
  const { name, usage, summary } = command;
  const details = command.details ? `${command.details}\n` : "";
  const example = command.example
    ? `\nExample:\n  toolsmith ${command.example}\n`
    : "";
  return `Usage: toolsmith ${name} ${usage}

${summary[0].toUpperCase()}${summary.slice(1)}.
${details}${example}
${flagHelp(Object.values(command.flags))}
`;
}

function flagHelp(flags: Flag[]): string {
  const rows = flags.map(({ name, placeholder, help }) => [
    placeholder ? `--${name} ${placeholder}` : `--${name}`,
    help,
  ]);
  const lines = alignColumns(rows);
  const byHeading = Object.groupBy(lines, (_, at) => flags[at].heading);
  return Object.entries(byHeading)
    .map(([heading, own = []]) => [`${heading}:`, ...own].join("\n"))
    .join("\n\n");
}

function alignColumns(rows: string[][]): string[] {
  const width = Math.max(...rows.map(([left]) => left.length));
  return rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`);
}
