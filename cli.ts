/**
 * The command line: parses argv, runs the command, and prints result or error.
 *
 * @module
 */
import { helpText } from "./lib/cli/commands.ts";
import { restoreConsole } from "./lib/cli/console_terminal.ts";
import {
  type CliIo,
  createProcessIo,
  type OutputFlagValues,
} from "./lib/cli/io.ts";
import { OutputClosedError } from "./lib/cli/queued_output.ts";
import { type Invocation, parseCommandLine } from "./lib/cli/command_line.ts";
import { jsonErrorLine } from "./lib/cli/render.ts";
import { watchSignals } from "./lib/cli/signals.ts";
import { processEnvironment } from "./lib/environment.ts";
import { toToolsmithError } from "./lib/errors.ts";
import { VERSION } from "./lib/version.ts";

/**
 * Runs the program.
 *
 * Needs the permissions of the command.
 *
 * @param args The arguments after the program's name.
 * @returns The exit status.
 *
 * @example Run a command as the program does
 * ```ts no-run
 * import { main } from "@fountain/toolsmith/cli";
 *
 * Deno.exitCode = await main(["hydrate", "--quiet"]);
 * ```
 */
export async function main(args: string[]): Promise<number> {
  using interrupt = await watchSignals(restoreConsole);
  const { abortSignal: signal } = interrupt;
  const io = createProcessIo(signal, processEnvironment);
  // A guess, for errors before the command line is parsed.
  let json = args.includes("--json");
  let verbose = args.includes("--verbose");
  try {
    const invocation = parseCommandLine(args);
    ({ json = false, verbose = false } = invocation.given as OutputFlagValues);
    const status = await executeInvocation(invocation, io);
    await io.flush();
    return status;
  } catch (thrown) {
    if (!signal.aborted && thrown instanceof OutputClosedError) return 141;
    const error = toToolsmithError(signal.aborted ? signal.reason : thrown);
    if (json) {
      io.printLine(jsonErrorLine(error, { verbose }));
      // Writing to standard output may be what failed, such as on a full disk.
      await io.flush().catch(() => io.printError(error, { verbose }));
    } else io.printError(error, { verbose });
    await io.flush().catch(() => {});
    return interrupt.exitStatus() ?? error.exitStatus;
  }
}

async function executeInvocation(
  invocation: Invocation,
  io: CliIo,
): Promise<number> {
  switch (invocation.kind) {
    case "help":
      io.printLine(helpText(invocation.command).trimEnd());
      return 0;
    case "version":
      io.printResult(
        invocation.given.json,
        { version: VERSION },
        `toolsmith ${VERSION}`,
      );
      return 0;
    case "command": {
      const { command, given, words } = invocation;
      return await command.run(given, io, words);
    }
  }
}

if (import.meta.main) {
  // Exit now: a pending write to a pipe that nobody reads would block the exit.
  Deno.exit(await main(Deno.args));
}
