/**
 * The streams of the program, and what is shown on them.
 *
 * @module
 */
import type { Environment } from "../environment.ts";
import type { OutputFlags } from "./args.ts";
import { humanView, resultLine, type View } from "./render.ts";

/** What a command has to do with the world outside. */
export interface Io {
  /** Writes a line of the result, to standard output. */
  print(line: string): void;
  /** Writes text for a person, to standard error. */
  say(text: string): void;
  /** Prints a result: as the last line of `--json`, or as text. */
  result(json: boolean, fields: object, text: string): void;
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
  return {
    print,
    say,
    signal,
    env,
    result(json, fields, text) {
      if (json) print(resultLine(fields, Date.now()));
      else if (text) print(text);
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

function write(
  stream: { writeSync(bytes: Uint8Array): number },
  text: string,
) {
  const bytes = new TextEncoder().encode(text);
  try {
    for (let at = 0; at < bytes.length;) {
      at += stream.writeSync(bytes.subarray(at));
    }
  } catch (error) {
    // Nobody reads any more, as in `toolsmith … | head -1`.
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}
