/** Runs a command in this process and records its output. */
import { assertEquals } from "@std/assert";
import type { CommandTerminal } from "../../lib/cli/command_terminal.ts";
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
  /** The output flags; performCommand() sets them. */
  flags: OutputFlagValues;
  /** Its results. */
  results: PrintedResult[];
  /** Other lines on standard output. */
  printed: string[];
  /** Text on standard error. */
  stderrText(): string;
  /** Events that were shown. */
  events: ToolsmithEvent[];
  /** Number of events after the result. */
  eventsAfterResult(): number;
  /** Whether events were held back for a command on this terminal, in order. */
  holds: boolean[];
  /** For each guest console opened on this terminal, whether it is still open. */
  consoles: boolean[];
  /** Output of the guest's command or console. */
  output(): string;
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
  screen?: (onChange: (taken: boolean) => void) => CommandTerminal;
  /** An additional event listener. */
  onEvent?: OnEvent;
}

/** Creates a recording CliIo. */
export function recordedIo(options: RecordedIoOptions = {}): RecordedIo {
  const { env = new Map(), signal = new AbortController().signal } = options;
  const { console, screen } = options;
  const decoder = new TextDecoder();
  let [told, output, late] = ["", "", 0];
  const take = (chunk: Uint8Array) => {
    output += decoder.decode(chunk);
    return Promise.resolve();
  };
  const recorded: Omit<RecordedIo, "io"> = {
    flags: {},
    results: [],
    printed: [],
    stderrText: () => told,
    events: [],
    eventsAfterResult: () => late,
    holds: [],
    consoles: [],
    output: () => output,
  };
  const io: CliIo = {
    env,
    signal,
    onEvent(event) {
      if (recorded.results.length > 0) late++;
      recorded.events.push(event);
      options.onEvent?.(event);
    },
    endEvents() {},
    printLine: (line) => recorded.printed.push(line),
    printNote(line) {
      const { json, quiet } = recorded.flags;
      if (!json && !quiet) told += `${line}\n`;
    },
    printError({ message }) {
      told += message;
      return Promise.resolve();
    },
    printResult(fields, text) {
      const { json = false } = recorded.flags;
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
    attachToGuestCommand() {
      if (!screen) throw new Error("no screen is given");
      return screen((taken) => recorded.holds.push(taken));
    },
    flush: () => Promise.resolve(),
  };
  return Object.assign(recorded, { io });
}

/**
 * Parses and runs a command line.
 *
 * @returns The exit status.
 */
export async function performCommand(
  args: string[],
  recorded: RecordedIo,
): Promise<number> {
  const read = parseCommandLine(args);
  if (read.kind !== "command") throw new Error(`it is ${read.kind}`);
  const { command, given, words } = read;
  recorded.flags = given as OutputFlagValues;
  try {
    return await command.run(given, recorded.io, words) ?? 0;
  } finally {
    const isOpen = recorded.consoles.includes(true);
    assertEquals(isOpen, false, "it keeps the terminal");
  }
}
