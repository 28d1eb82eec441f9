/**
 * The command table, in the order of the help. A new command is a file in
 * commands/ and a line here.
 */
import type { Subcommand } from "./subcommand.ts";
import { bootCommand, stopCommand } from "./commands/boot.ts";
import { cacheCommand } from "./commands/cache.ts";
import { createCompletionsCommand } from "./commands/completions.ts";
import { doctorCommand } from "./commands/doctor.ts";
import { hydrateCommand } from "./commands/hydrate.ts";
import { initCommand } from "./commands/init.ts";
import { mcpCommand } from "./commands/mcp.ts";
import { publishCommand } from "./commands/publish.ts";
import { runCommand, shellCommand } from "./commands/run.ts";

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
