/**
 * The command line: from argv to a library call, and from its result to text.
 *
 * @module
 */
import { assertExactArgs } from "./lib/cli/exact_args.ts";
import { helpText } from "./lib/cli/help.ts";
import { type Io, processIo } from "./lib/cli/io.ts";
import { OutputClosedError } from "./lib/cli/output.ts";
import { type Invocation, parseCommandLine } from "./lib/cli/parse.ts";
import { errorLine } from "./lib/cli/render.ts";
import { watchSignals } from "./lib/cli/signals.ts";
import { processEnvironment } from "./lib/environment.ts";
import { toToolsmithError } from "./lib/errors.ts";
import { VERSION } from "./lib/version.ts";

/**
 * Runs the program.
 *
 * Needs the permissions of the command that it runs.
 *
 * @param args What follows the program's name.
 * @returns The exit status.
 */
export async function main(args: string[]): Promise<number> {
  using interrupt = await watchSignals(() => io.restoreTerminal());
  const io = processIo(interrupt.signal, processEnvironment);
  // Until it is known whose flag it is.
  let json = args.includes("--json");
  try {
    assertExactArgs(args);
    const invocation = parseCommandLine(args);
    json = invocation.kind !== "help" && invocation.json;
    const status = await execute(invocation, io);
    await io.flush();
    return status;
  } catch (thrown) {
    const { signal } = interrupt;
    if (!signal.aborted && thrown instanceof OutputClosedError) return 141;
    const error = toToolsmithError(signal.aborted ? signal.reason : thrown);
    if (json) {
      io.print(errorLine(error, Date.now()));
      // Standard output may be what failed, such as a full disk.
      await io.flush().catch(() => io.sayError(error));
    } else io.sayError(error);
    await io.flush().catch(() => {});
    return interrupt.exitStatus() ?? error.exitStatus;
  }
}

async function execute(invocation: Invocation, io: Io): Promise<number> {
  switch (invocation.kind) {
    case "help":
      io.print(helpText(invocation.command).trimEnd());
      return 0;
    case "version":
      io.result(invocation.json, { version: VERSION }, `toolsmith ${VERSION}`);
      return 0;
    case "command":
      return await invocation.command.run(invocation.request, io);
  }
}

if (import.meta.main) {
  // A write to a pipe that nobody reads would keep the process from ending.
  Deno.exit(await main(Deno.args));
}
