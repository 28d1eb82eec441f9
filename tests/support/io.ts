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
import type { OnEvent, ToolsmithEvent } from "../../lib/events.ts";

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
  /** How many of them came when no view was open. */
  late(): number;
  /** The flags of each view, and whether it is open. */
  views: { flags: OutputFlags; open: boolean }[];
  /** Consoles of guests that were on this terminal, and whether they still are. */
  consoles: boolean[];
  /** What a command that it ran, or a guest's console, has written. */
  output(): string;
}

/** What {@linkcode recordedIo} takes. */
export interface RecordedIoOptions {
  /** Environment variables. @default none */
  env?: Environment;
  /** Aborted by Ctrl-C. @default never */
  signal?: AbortSignal;
  /** What is typed on a guest's console. @default {undefined} there is none */
  console?: ReadableStream<Uint8Array>;
  /** The terminal of a command in the guest. @default {undefined} there is none */
  screen?: Io["screen"];
  /** Takes events, besides. */
  onEvent?: OnEvent;
}

/** Makes what a command prints with. A result must not meet a bar that is drawn. */
export function recordedIo(options: RecordedIoOptions = {}): RecordedIo {
  const { env = new Map(), signal = new AbortController().signal } = options;
  const { console, screen, onEvent } = options;
  const decoder = new TextDecoder();
  let [told, output, late] = ["", "", 0];
  const take = (chunk: Uint8Array) => {
    output += decoder.decode(chunk);
    return Promise.resolve();
  };
  const recorded: Omit<RecordedIo, "io"> = {
    results: [],
    printed: [],
    told: () => told,
    events: [],
    late: () => late,
    views: [],
    consoles: [],
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
    terminal() {
      if (!console) throw new Error("no console is given");
      recorded.consoles.push(true);
      return {
        input: console,
        output: (chunk) => void take(chunk),
        [Symbol.dispose]: () => void recorded.consoles.fill(false),
      };
    },
    screen(onChange) {
      if (!screen) throw new Error("no screen is given");
      return screen(onChange);
    },
    view(flags) {
      const view = { flags, open: true };
      recorded.views.push(view);
      return {
        onEvent(event) {
          if (!view.open) late++;
          recorded.events.push(event);
          onEvent?.(event);
        },
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
  { io, views, consoles }: RecordedIo,
): Promise<number> {
  const read = parseCommandLine(args);
  if (read.kind !== "command") throw new Error(`it is ${read.kind}`);
  try {
    return await read.command.run(read.request, io);
  } finally {
    const open = [...views.map(({ open }) => open), ...consoles];
    assertEquals(open.includes(true), false, "it keeps the terminal");
  }
}
