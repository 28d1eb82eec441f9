/**
 * The streams of the program, and what is shown on them.
 *
 * @module
 */
import type { Environment } from "../environment.ts";
import type { OutputFlags } from "./flags.ts";
import { humanView, resultLine, type View } from "./render.ts";

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
  stdout: "inherit" | ((chunk: Uint8Array) => void);
  /** Takes its error output. */
  stderr: "inherit" | ((chunk: Uint8Array) => void);
}

/** A terminal that a guest's console is on. */
export interface Terminal extends Disposable {
  /** What is typed. */
  input: ReadableStream<Uint8Array>;
  /** Shows what the guest writes. */
  output: (chunk: Uint8Array) => void;
}

/** What a command has to do with the world outside. */
export interface Io {
  /** Writes a line of the result, to standard output. */
  print(line: string): void;
  /** Writes text for a person, to standard error. */
  say(text: string): void;
  /** Prints a result: as the last line of `--json`, or as text. */
  result(json: boolean, fields: object, text: string): void;
  /** The streams of a command that runs: these, or lines of `--json`. */
  streams(json: boolean): CommandStreams;
  /** The same for a command on the host, which may have them as they are. */
  hostStreams(json: boolean): HostStreams;
  /** This terminal, for a guest's console, until it is disposed. */
  terminal(json: boolean): Terminal;
  /** Shows events as the flags ask for. */
  view(flags: OutputFlags): View;
  /** Aborted by Ctrl-C and TERM. */
  signal: AbortSignal;
  /** Environment variables. */
  env: Environment;
}

/**
 * The process's own streams.
 *
 * @param signal Aborted by Ctrl-C and TERM.
 * @param env Environment variables.
 * @returns What commands print with.
 */
export function processIo(signal: AbortSignal, env: Environment): Io {
  const print = (line: string) => write(Deno.stdout, `${line}\n`);
  const say = (text: string) => write(Deno.stderr, text);
  // Unlike events, output that nobody reads ends the command.
  const printOutput = (stream: "stdout" | "stderr", chunk: Uint8Array) =>
    writeAll(
      Deno.stdout,
      new TextEncoder().encode(`${outputLine(stream, chunk)}\n`),
    );
  return {
    print,
    say,
    signal,
    env,
    result(json, fields, text) {
      if (json) print(resultLine(fields, Date.now()));
      else if (text) print(text);
    },
    streams: (json) => ({
      stdin: Deno.stdin.readable,
      stdout: json
        ? (chunk) => printOutput("stdout", chunk)
        : (chunk) => writeAll(Deno.stdout, chunk),
      stderr: json
        ? (chunk) => printOutput("stderr", chunk)
        : (chunk) => writeAll(Deno.stderr, chunk),
    }),
    hostStreams: (json) => ({
      stdin: "inherit",
      stdout: json ? (chunk) => print(outputLine("stdout", chunk)) : "inherit",
      stderr: json ? (chunk) => print(outputLine("stderr", chunk)) : "inherit",
    }),
    terminal(json) {
      const raw = Deno.stdin.isTerminal();
      // Keys go to the guest as they are typed; Ctrl-C stays a signal.
      if (raw) Deno.stdin.setRaw(true, { cbreak: true });
      return {
        input: Deno.stdin.readable,
        output: (chunk) => writeSync(json ? Deno.stderr : Deno.stdout, chunk),
        [Symbol.dispose]: () => {
          if (raw) Deno.stdin.setRaw(false);
        },
      };
    },
    view({ json, quiet, progress }) {
      if (json) {
        return { onEvent: (event) => print(JSON.stringify(event)), close() {} };
      }
      if (quiet) return { onEvent() {}, close() {} };
      const bar = progress && Deno.stderr.isTerminal() &&
        env.get("TERM") !== "dumb";
      return humanView({
        write: say,
        bar,
        columns: bar ? columns() : 80,
        now: Date.now,
      });
    },
  };
}

function columns(): number {
  try {
    return Deno.consoleSize().columns;
  } catch {
    // A terminal that does not tell its size.
    return 80;
  }
}

/** A chunk of a command's output; it need not be text. */
function outputLine(stream: "stdout" | "stderr", chunk: Uint8Array): string {
  const timestamp = new Date().toISOString();
  let binary = "";
  for (const byte of chunk) binary += String.fromCharCode(byte);
  return JSON.stringify(
    { type: "output", timestamp, stream, base64: btoa(binary) },
  );
}

async function writeAll(
  stream: { write(bytes: Uint8Array): Promise<number> },
  bytes: Uint8Array,
) {
  for (let at = 0; at < bytes.length;) {
    at += await stream.write(bytes.subarray(at));
  }
}

function write(
  stream: { writeSync(bytes: Uint8Array): number },
  text: string,
) {
  writeSync(stream, new TextEncoder().encode(text));
}

function writeSync(
  stream: { writeSync(bytes: Uint8Array): number },
  bytes: Uint8Array,
) {
  try {
    for (let at = 0; at < bytes.length;) {
      at += stream.writeSync(bytes.subarray(at));
    }
  } catch (error) {
    // Nobody reads any more, as in `toolsmith … | head -1`.
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}
