/**
 * The streams of the program, and what is shown on them.
 *
 * @module
 */
import type { Environment } from "../environment.ts";
import type { ToolsmithError } from "../errors.ts";
import type { OutputFlags } from "./flags.ts";
import type { ProcessOutput } from "../system/process.ts";
import { jsonLine } from "../system/text.ts";
import { CLOSED_STDOUT, isStdoutClosed } from "./closed_stdout.ts";
import { settlesWithin } from "../system/time.ts";
import { type Output, OutputClosedError, queuedOutput } from "./output.ts";
import { type Screen, thisScreen } from "./screen.ts";
import { guestTerminal, type Terminal } from "./terminal.ts";
import {
  describeError,
  humanView,
  outputLine,
  resultLine,
  type View,
} from "./render.ts";

/** Where the streams of a command come from and go to. */
export interface CommandStreams {
  /** What it reads. */
  stdin: ReadableStream<Uint8Array>;
  /** Takes its output. */
  stdout: (chunk: Uint8Array) => Promise<void>;
  /** Takes its error output. */
  stderr: (chunk: Uint8Array) => Promise<void>;
}

/** Where the streams of a command on the host come from and go to. */
export interface HostStreams {
  /** What it reads. */
  stdin: "inherit";
  /** Takes its output. */
  stdout: ProcessOutput;
  /** Takes its error output. */
  stderr: ProcessOutput;
}

/** What a command has to do with the world outside. */
export interface Io {
  /** Writes a line of the result, to standard output. */
  print(line: string): void;
  /** Writes text for a person, to standard error. */
  say(text: string): void;
  /** Says an error, in colours where a terminal shows them. */
  sayError(error: ToolsmithError): void;
  /** Prints a result: as the last line of `--json`, or as text. */
  result(json: boolean, fields: object, text: string): void;
  /** The streams of a command that runs: these, or lines of `--json`. */
  streams(json: boolean): CommandStreams;
  /**
   * The same for a command on the host, which may have them as they are.
   *
   * @param onFailure Notified when its output cannot be written.
   */
  hostStreams(json: boolean, onFailure: (error: Error) => void): HostStreams;
  /** This terminal, for a guest's console, until it is disposed. */
  terminal(json: boolean): Terminal;
  /**
   * This terminal, for a command in the guest, until it is disposed.
   *
   * @param onChange Called with whether the guest has it from now on.
   */
  screen(onChange: (taken: boolean) => void): Screen;
  /** Shows events as the flags ask for. */
  view(flags: OutputFlags): View;
  /** Gives the terminal back as it was, if a guest's console has it. */
  restoreTerminal(): void;
  /**
   * Waits until all is written; after Ctrl-C, not for who does not read.
   *
   * @throws {ToolsmithError} `disk_full`, `file_unreadable`.
   * @throws The signal's reason when something is left unwritten.
   */
  flush(): Promise<void>;
  /** Aborted by Ctrl-C and TERM. */
  signal: AbortSignal;
  /** Environment variables. */
  env: Environment;
}

/** How long output is waited for after Ctrl-C. */
const FLUSH_MS = 200;

/**
 * The process's own streams.
 *
 * @param signal Aborted by Ctrl-C and TERM.
 * @param env Environment variables.
 * @returns What commands print with.
 */
export function processIo(signal: AbortSignal, env: Environment): Io {
  const isClosed = isStdoutClosed();
  const stdout = queuedOutput(
    isClosed ? CLOSED_STDOUT : Deno.stdout,
    "standard output",
  );
  const stderr = queuedOutput(Deno.stderr, "standard error");
  const aborted = new Promise<void>((done) => {
    if (signal.aborted) done();
    signal.addEventListener("abort", () => done(), { once: true });
  });
  const print = (line: string) => void stdout.write(`${line}\n`);
  const say = (text: string) => void stderr.write(text);
  const terminal = guestTerminal();
  const drawn = Deno.stderr.isTerminal() && env.get("TERM") !== "dumb";
  const coloured = drawn && !env.get("NO_COLOR");
  return {
    print,
    say,
    sayError: (error) => say(describeError(error, coloured)),
    signal,
    env,
    restoreTerminal: terminal.restore,
    async flush() {
      const written = stdout.flushed().catch(ignoreClosed);
      const all = Promise.allSettled([written, stderr.flushed()]);
      const late = aborted.then(() => settlesWithin(all, FLUSH_MS));
      await Promise.race([all, late]);
      if (stdout.waiting() > 0) throw signal.reason;
      await written;
    },
    result(json, fields, text) {
      if (json) print(resultLine(fields, Date.now()));
      else if (text) print(text);
    },
    streams: (json) => commandStreams(json, { stdout, stderr }),
    hostStreams(json, onFailure) {
      if (!json && !isClosed) {
        return { stdin: "inherit", stdout: "inherit", stderr: "inherit" };
      }
      const streams = commandStreams(json, { stdout, stderr });
      const sink = (name: "stdout" | "stderr") => (chunk: Uint8Array) =>
        Promise.race([streams[name](chunk).catch(onFailure), aborted]);
      return {
        stdin: "inherit",
        stdout: sink("stdout"),
        stderr: sink("stderr"),
      };
    },
    screen: (onChange) => thisScreen(stdout, onChange),
    terminal: (json) => terminal.take(json ? stderr : stdout),
    view({ json, quiet, progress }) {
      if (json) {
        return { onEvent: (event) => print(jsonLine(event)), close() {} };
      }
      if (quiet) return { onEvent() {}, close() {} };
      const bar = progress && drawn;
      return humanView({
        write: say,
        bar,
        columns: bar ? columns() : 80,
        coloured,
        now: Date.now,
        everySecond(tick) {
          const timer = setInterval(tick, 1000);
          Deno.unrefTimer(timer);
          return () => clearInterval(timer);
        },
      });
    },
  };
}

function commandStreams(
  json: boolean,
  outputs: { stdout: Output; stderr: Output },
): CommandStreams {
  const sink = (name: "stdout" | "stderr") => (chunk: Uint8Array) =>
    json
      ? outputs.stdout.write(`${outputLine(name, chunk, Date.now())}\n`)
      : outputs[name].write(chunk);
  return {
    stdin: Deno.stdin.readable,
    stdout: sink("stdout"),
    stderr: sink("stderr"),
  };
}

function ignoreClosed(error: Error) {
  if (!(error instanceof OutputClosedError)) throw error;
}

function columns(): number {
  try {
    return Deno.consoleSize().columns;
  } catch {
    // A terminal that does not report its size.
    return 80;
  }
}
