/**
 * The command line: from argv to a library call, and from its result to text.
 *
 * @module
 */
import { helpText } from "./lib/cli/help.ts";
import { type Io, processIo } from "./lib/cli/io.ts";
import { type Invocation, parseCommandLine } from "./lib/cli/parse.ts";
import { describeError, errorLine } from "./lib/cli/render.ts";
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
  const interrupt = watchSignals();
  const io = processIo(interrupt.signal, processEnvironment);
  // Until it is known whose flag it is.
  let json = args.includes("--json");
  try {
    const invocation = parseCommandLine(args);
    json = invocation.kind === "command" && invocation.json;
    return await execute(invocation, io);
  } catch (thrown) {
    const error = toToolsmithError(interrupt.reason() ?? thrown);
    try {
      if (json) io.print(errorLine(error, Date.now()));
      else io.say(describeError(error));
    } catch {
      // Standard output is what failed, such as a full disk.
      io.say(describeError(error));
    }
    return interrupt.exitStatus() ?? error.exitStatus;
  } finally {
    interrupt.ignore();
  }
}

async function execute(invocation: Invocation, io: Io): Promise<number> {
  switch (invocation.kind) {
    case "help":
      io.print(helpText(invocation.command).trimEnd());
      return 0;
    case "version":
      io.print(`toolsmith ${VERSION}`);
      return 0;
    case "command":
      return await invocation.command.run(invocation.request, io);
  }
}

/** Ctrl-C and TERM cancel what runs; what was begun is cleaned up. */
function watchSignals() {
  const cancel = new AbortController();
  let status: number | undefined;
  const names: [Deno.Signal, number][] = Deno.build.os === "windows"
    ? [["SIGINT", 130]]
    : [["SIGINT", 130], ["SIGTERM", 143], ["SIGHUP", 129]];
  const listeners = names.map(([name, code]) => {
    const listener = () => {
      if (status !== undefined) {
        // A second one ends at once, as if nobody listened.
        Deno.removeSignalListener(name, listener);
        return Deno.kill(Deno.pid, name);
      }
      status = code;
      cancel.abort(new DOMException(`Cancelled by ${name}`, "AbortError"));
    };
    Deno.addSignalListener(name, listener);
    return () => Deno.removeSignalListener(name, listener);
  });
  return {
    signal: cancel.signal,
    reason: () => cancel.signal.reason,
    exitStatus: () => status,
    ignore: () => listeners.forEach((remove) => remove()),
  };
}

if (import.meta.main) {
  Deno.exitCode = await main(Deno.args);
}
