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
  const openIo = (flags: OutputFlagValues) =>
    createProcessIo(signal, processEnvironment, flags);
  // A guess, for errors before the command line is parsed.
  const [json, verbose] = ["--json", "--verbose"].map((it) =>
    args.includes(it)
  );
  let io = openIo({ json, verbose });
  try {
    const invocation = parseCommandLine(args);
    io = openIo(invocation.given);
    const status = await executeInvocation(invocation, io) ?? 0;
    await io.flush();
    return status;
  } catch (thrown) {
    if (!signal.aborted && thrown instanceof OutputClosedError) return 141;
    const error = toToolsmithError(signal.aborted ? signal.reason : thrown);
    await io.printError(error);
    await io.flush().catch(() => {});
    return interrupt.exitStatus() ?? error.exitStatus;
  }
}

async function executeInvocation(
  invocation: Invocation,
  io: CliIo,
): Promise<number | void> {
  if (invocation.kind === "help") {
    return io.printLine(helpText(invocation.command).trimEnd());
  }
  if (invocation.kind === "version") {
    return io.printResult({ version: VERSION }, `toolsmith ${VERSION}`);
  }
  const { command, given, words } = invocation;
  try {
    return await command.run(given, io, words);
  } finally {
    io.endEvents();
  }
}

if (import.meta.main) {
  // Exit now: a pending write to a pipe that nobody reads would block the exit.
  Deno.exit(await main(Deno.args));
}
