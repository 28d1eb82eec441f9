/**
 * The streams of the program, and how results, events and errors are printed.
 */
import type { Environment } from "../environment.ts";
import type { ToolsmithError } from "../errors.ts";
import type { ToolsmithEvent } from "../events.ts";
import type { FlagValues } from "./flag.ts";
import type * as shared from "./shared_flags.ts";
import type { ProcessOutputTarget } from "../system/process.ts";
import { terminalSafeJson } from "../system/sanitize_text.ts";
import { settlesWithin } from "../system/time.ts";
import {
  createQueuedOutput,
  FAILING_STDOUT,
  isStdoutClosed,
  OutputClosedError,
} from "./queued_output.ts";
import { createCommandTerminal } from "./command_terminal.ts";
import { attachConsole } from "./console_terminal.ts";
import {
  createTextEventView,
  formatError,
  jsonErrorLine,
  jsonLine,
} from "./render.ts";

export type OutputFlagValues = FlagValues<
  typeof shared.OUTPUT & typeof shared.COMMON
>;

/** A command's access to terminal, output, environment and signals. */
export type CliIo = ReturnType<typeof createProcessIo>;

/** A slow host may need some hundred milliseconds even if somebody reads. */
const MAX_FLUSH_AFTER_ABORT_MS = 1000;

export function createProcessIo(
  signal: AbortSignal,
  env: Environment,
  { json, quiet, progress = true, verbose }: OutputFlagValues,
) {
  const isClosed = isStdoutClosed();
  const stdout = createQueuedOutput(
    isClosed ? FAILING_STDOUT : Deno.stdout,
    "standard output",
  );
  const stderr = createQueuedOutput(Deno.stderr, "standard error");
  const aborted = new Promise<void>((done) => {
    if (signal.aborted) done();
    signal.addEventListener("abort", () => done(), { once: true });
  });
  const printLine = (line: string): void => void stdout.write(`${line}\n`);
  const printToStderr = (text: string): void => void stderr.write(text);
  const hasAnsiTerminal = Deno.stderr.isTerminal() &&
    env.get("TERM") !== "dumb";
  const coloured = hasAnsiTerminal && !env.get("NO_COLOR");
  const canRedrawLine = progress && hasAnsiTerminal;
  const view = createTextEventView({
    write: printToStderr,
    canRedrawLine,
    columns: canRedrawLine ? terminalColumns() : 80,
    coloured,
    verbose,
  });
  const onEvent = (event: ToolsmithEvent) => {
    if (json) printLine(terminalSafeJson(event));
    else if (!quiet) view.onEvent(event);
  };
  /**
   * Waits until all output is written, after Ctrl-C only for a moment. Throws the
   * signal's reason if a blocked reader leaves output unwritten.
   */
  const flush = async () => {
    const written = stdout.flush().catch((error) => {
      if (!(error instanceof OutputClosedError)) throw error;
    });
    const all = Promise.allSettled([written, stderr.flush()]);
    const late = aborted.then(() =>
      settlesWithin(all, MAX_FLUSH_AFTER_ABORT_MS)
    );
    await Promise.race([all, late]);
    if (stdout.pendingBytes() > 0) throw signal.reason;
    await written;
  };
  /** Streams for a command in the guest; with `--json` its output becomes JSON lines. */
  const guestCommandStreams = () => {
    const sink = (stream: "stdout" | "stderr") => (chunk: Uint8Array) => {
      if (!json) return { stdout, stderr }[stream].write(chunk);
      const line = jsonLine("output", { stream, base64: chunk.toBase64() });
      return stdout.write(`${line}\n`);
    };
    const stdin = Deno.stdin.readable;
    return { stdin, stdout: sink("stdout"), stderr: sink("stderr") };
  };
  return {
    env,
    /** Aborted by Ctrl-C and TERM. */
    signal,
    onEvent,
    /** Ends the progress of events, and sums up what the network decided. */
    endEvents: view.end,
    flush,
    printLine,
    /** Prints the result: the last line of `--json`, or text. */
    printResult(fields: object, text: string) {
      view.close();
      if (json) printLine(jsonLine("result", fields));
      else if (text) printLine(text);
    },
    /** Prints a line to a person, beside the result. */
    printNote(line: string) {
      if (!json && !quiet) printToStderr(`${line}\n`);
    },
    async printError(error: ToolsmithError) {
      const text = formatError(error, { coloured, verbose });
      if (!json) return printToStderr(text);
      printLine(jsonErrorLine(error, { verbose }));
      // Writing to standard output may be what failed, such as on a full disk.
      await flush().catch(() => printToStderr(text));
    },
    guestCommandStreams,
    /**
     * Streams for a command on the host, inherited where possible; `onFailure` is called
     * when output cannot be written.
     */
    hostCommandStreams(onFailure: (error: Error) => void) {
      const streams = guestCommandStreams();
      const sink = (name: "stdout" | "stderr"): ProcessOutputTarget =>
        json || isClosed
          ? (chunk) =>
            Promise.race([streams[name](chunk).catch(onFailure), aborted])
          : "inherit";
      const stdin = "inherit" as const;
      return { stdin, stdout: sink("stdout"), stderr: sink("stderr") };
    },
    /** Attaches this terminal to a command in the guest until it is disposed. */
    attachToGuestCommand: () => createCommandTerminal(stdout, view.hold),
    /** Attaches this terminal to a guest's console until it is disposed. */
    attachToGuestConsole() {
      view.close();
      return attachConsole(json ? stderr : stdout);
    },
  };
}

function terminalColumns(): number {
  try {
    return Deno.consoleSize().columns;
  } catch {
    // The terminal does not report its size.
    return 80;
  }
}
