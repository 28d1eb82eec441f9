/**
 * Runs a command in this process, with what it prints kept.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import type { Io } from "../../lib/cli/io.ts";
import type { OutputFlags } from "../../lib/cli/flags.ts";
import { parseCommandLine } from "../../lib/cli/parse.ts";
import type { Environment } from "../../lib/environment.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";

/** A result that a command has printed. */
export interface PrintedResult {
  /** Whether as JSON. */
  json: boolean;
  /** What the JSON has. */
  fields: Record<string, unknown>;
  /** The text. */
  text: string;
}

/** What a command has printed. */
export interface RecordedIo {
  /** What the command is given. */
  io: Io;
  /** Its results. */
  results: PrintedResult[];
  /** Lines on standard output besides. */
  printed: string[];
  /** Text for a person. */
  told(): string;
  /** Events that were shown. */
  events: ToolsmithEvent[];
  /** The flags of each view, and whether it is open. */
  views: { flags: OutputFlags; open: boolean }[];
  /** What a command that it ran has written. */
  output(): string;
}

/** What {@linkcode recordedIo} takes. */
export interface RecordedIoOptions {
  /** Environment variables. @default none */
  env?: Environment;
  /** Aborted by Ctrl-C. @default never */
  signal?: AbortSignal;
}

/** Makes what a command prints with. A result must not meet a bar that is drawn. */
export function recordedIo(options: RecordedIoOptions = {}): RecordedIo {
  const { env = new Map(), signal = new AbortController().signal } = options;
  const decoder = new TextDecoder();
  let [told, output] = ["", ""];
  const take = (chunk: Uint8Array) => {
    output += decoder.decode(chunk);
    return Promise.resolve();
  };
  const recorded: Omit<RecordedIo, "io"> = {
    results: [],
    printed: [],
    told: () => told,
    events: [],
    views: [],
    output: () => output,
  };
  const io: Io = {
    env,
    signal,
    print: (line) => recorded.printed.push(line),
    say: (text) => told += text,
    sayError: ({ message }) => told += message,
    result(json, fields, text) {
      recorded.results.push({ json, fields: { ...fields }, text });
    },
    streams: () => ({
      stdin: new Blob().stream(),
      stdout: take,
      stderr: take,
    }),
    hostStreams: () => ({ stdin: "inherit", stdout: take, stderr: take }),
    terminal: () => {
      throw new Error("no test has a terminal here");
    },
    screen: () => {
      throw new Error("no test has a terminal here");
    },
    view(flags) {
      const view = { flags, open: true };
      recorded.views.push(view);
      return {
        onEvent: (event) => void recorded.events.push(event),
        close: () => view.open = false,
      };
    },
    restoreTerminal() {},
    flush: () => Promise.resolve(),
  };
  return { io, ...recorded };
}

/**
 * Runs a command line that names a command, as the program does.
 *
 * @param args What follows the program's name.
 * @param recorded What it prints with.
 * @returns Its exit status.
 */
export async function perform(
  args: string[],
  { io, views }: RecordedIo,
): Promise<number> {
  const read = parseCommandLine(args);
  if (read.kind !== "command") throw new Error(`it is ${read.kind}`);
  try {
    return await read.command.run(read.request, io);
  } finally {
    assertEquals(views.map(({ open }) => open), views.map(() => false));
  }
}
