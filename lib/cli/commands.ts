/**
 * Every command of the program, in the order of the help. A new one is a new
 * file in commands/ and a line here.
 *
 * @module
 */
import type { Command } from "./command.ts";
import { boot } from "./commands/boot.ts";
import { cache } from "./commands/cache.ts";
import { completions } from "./commands/completions.ts";
import { doctor } from "./commands/doctor.ts";
import { hydrate } from "./commands/hydrate.ts";
import { init } from "./commands/init.ts";
import { publish } from "./commands/publish.ts";
import { run } from "./commands/run.ts";
import { shell } from "./commands/shell.ts";
import { stop } from "./commands/stop.ts";

/** The table that the parser, the help and the program look commands up in. */
export const COMMANDS: Command[] = [
  hydrate,
  boot,
  run,
  shell,
  stop,
  publish,
  init,
  doctor,
  cache,
  completions(() => COMMANDS),
];
