/** Runs a command in this process and records its output. */
import { assertEquals } from "@std/assert";
import type { CliIo, OutputFlagValues } from "../../lib/cli/io.ts";
import { parseCommandLine } from "../../lib/cli/command_line.ts";
import type { Environment } from "../../lib/environment.ts";
import type { OnEvent, ToolsmithEvent } from "../../lib/events.ts";

/** A result printed by a command. */
export interface PrintedResult {
  /** Whether as JSON. */
  json: boolean;
  /** What the JSON has. */
  fields: Record<string, unknown>;
  /** The text. */
  text: string;
}

/** The recorded output of a command. */
export interface RecordedIo {
  io: CliIo;
  /** Its results. */
  results: PrintedResult[];
  /** Other lines on standard output. */
  printed: string[];
  /** Text on standard error. */
  stderrText(): string;
  /** Events that were shown. */
  events: ToolsmithEvent[];
  /** Number of events after the view was closed. */
  eventsAfterClose(): number;
  /** Each event view. */
  views: RecordedView[];
  /** For each guest console opened on this terminal, whether it is still open. */
  consoles: boolean[];
  /** Output of the guest's command or console. */
  output(): string;
}

/** An event view of a command. */
export interface RecordedView {
  flags: OutputFlagValues;
  /** Whether it is neither closed nor disposed. */
  open: boolean;
  /** Whether it was disposed, which prints its summary. */
  disposed: boolean;
  /** How events were held back. */
  holds: boolean[];
}

/** What {@linkcode recordedIo} takes. */
export interface RecordedIoOptions {
  /** Environment variables. @default none */
  env?: Environment;
  /** Aborted by Ctrl-C. @default never */
  signal?: AbortSignal;
  /** Input of a guest's console. @default {undefined} no console */
  console?: ReadableStream<Uint8Array<ArrayBuffer>>;
  /** The terminal of a command in the guest. @default {undefined} no terminal */
  screen?: CliIo["attachToGuestCommand"];
  /** An additional event listener. */
  onEvent?: OnEvent;
}

/** Creates a recording CliIo. It rejects a result while an event view is open. */
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
    stderrText: () => told,
    events: [],
    eventsAfterClose: () => late,
    views: [],
    consoles: [],
    output: () => output,
  };
  const io: CliIo = {
    env,
    signal,
    printLine: (line) => recorded.printed.push(line),
    printToStderr: (text) => told += text,
    printError: ({ message }) => told += message,
    printResult(json = false, fields, text) {
      recorded.results.push({ json, fields: { ...fields }, text });
    },
    guestCommandStreams: () => ({
      stdin: new Blob().stream(),
      stdout: take,
      stderr: take,
    }),
    hostCommandStreams: () => ({
      stdin: "inherit",
      stdout: take,
      stderr: take,
    }),
    attachToGuestConsole() {
      if (!console) throw new Error("no console is given");
      recorded.consoles.push(true);
      return {
        input: console,
        output: (chunk) => void take(chunk),
        [Symbol.dispose]: () => void recorded.consoles.fill(false),
      };
    },
    attachToGuestCommand(onChange) {
      if (!screen) throw new Error("no screen is given");
      return screen(onChange);
    },
    openEventView(flags) {
      const view: RecordedView = {
        flags,
        open: true,
        disposed: false,
        holds: [],
      };
      recorded.views.push(view);
      const close = () => void (view.open = false);
      return {
        close,
        hold: (isHeld) => void view.holds.push(isHeld),
        [Symbol.dispose]() {
          view.disposed = true;
          close();
        },
        onEvent(event) {
          if (!view.open) late++;
          recorded.events.push(event);
          onEvent?.(event);
        },
      };
    },
    flush: () => Promise.resolve(),
  };
  return { io, ...recorded };
}

/**
 * Parses and runs a command line.
 *
 * @returns The exit status.
 */
export async function performCommand(
  args: string[],
  { io, views, consoles }: RecordedIo,
): Promise<number> {
  const read = parseCommandLine(args);
  if (read.kind !== "command") throw new Error(`it is ${read.kind}`);
  try {
    return await read.command.run(read.given, io, read.words);
  } finally {
    const open = [...views.map(({ open }) => open), ...consoles];
    assertEquals(open.includes(true), false, "it keeps the terminal");
  }
}
