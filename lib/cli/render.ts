/**
 * What a person sees on standard error, and what a script reads as JSON Lines.
 *
 * @module
 */
import type { ToolsmithError } from "../errors.ts";
import type { OnEvent, ToolsmithEvent } from "../events.ts";
import { jsonLine, printable } from "../system/text.ts";
import { describe } from "./event_text.ts";
import { progressBar, secondsText } from "./format.ts";

/** Where a view writes, and what that can show. */
export interface Screen {
  /** Writes text. */
  write(text: string): void;
  /** Whether a line can be drawn over. */
  bar: boolean;
  /** Its width, in characters. */
  columns: number;
  /** Whether colours are shown. @default {false} */
  coloured?: boolean;
  /** The clock, in milliseconds. */
  now(): number;
  /** Calls back every second, until what it returns is called. */
  everySecond(tick: () => void): () => void;
}

/** Shows events. */
export interface View {
  /** Takes an event. */
  onEvent: OnEvent;
  /**
   * Takes what is left of a progress bar away. Events that come later are shown
   * each in its line, and no seconds are counted: the terminal is others' too.
   */
  close(): void;
}

const PLAIN_PROGRESS_MS = 5000;
/** Elsewhere than on a terminal, silence of this length is broken. */
const PLAIN_SILENCE_MS = 30_000;
/** Long work that makes no progress that can be measured, by what begins it. */
const LONG_WORK: Partial<Record<ToolsmithEvent["type"], string>> = {
  vm_boot: "booting",
  publish_start: "pushing",
  command_end: "ending the machine",
};
const RED = 31;
const YELLOW = 33;
const CYAN = 36;
/** More of a message is no help to a person. */
const MAX_SHOWN = 4000;

/**
 * Makes the view for a person.
 *
 * @param screen Standard error, and what it can show.
 * @returns The view.
 */
export function humanView(screen: Screen): View {
  let drawn = false;
  let closed = false;
  let begun: number | undefined;
  let resumed = 0;
  let reported = 0;
  const clear = () => {
    if (drawn) screen.write("\r\x1b[K");
    drawn = false;
  };
  let rest = () => {};
  /** Shows every second that work goes on. */
  const goOn = (work: string) => {
    const start = screen.now();
    let said = start;
    const stop = screen.everySecond(() => {
      const now = screen.now();
      const line = `${work}: ${secondsText(now - start)}`;
      if (screen.bar) {
        screen.write(`\r\x1b[K${line.slice(0, screen.columns - 1)}`);
        drawn = true;
      } else if (now - said >= PLAIN_SILENCE_MS) {
        said = now;
        screen.write(`${line}\n`);
      }
    });
    rest = () => {
      stop();
      clear();
      rest = () => {};
    };
  };
  return {
    onEvent(event) {
      const now = screen.now();
      const work = LONG_WORK[event.type];
      if (event.type !== "warning") rest();
      if (work && !closed) goOn(work);
      const first = event.type === "download_start" ||
        event.type === "image_inspected";
      if (first) begun = reported = now;
      if (first) resumed = event.type === "download_start" ? event.resumed : 0;
      if (
        event.type === "download_progress" || event.type === "checksum_progress"
      ) {
        // Without a start there is no rate to tell yet.
        if (begun === undefined) {
          begun = reported = now;
          return;
        }
        const line = progressBar(
          { ...event, resumed },
          now - begun,
          screen.columns,
        );
        if (screen.bar) {
          screen.write(`\r\x1b[K${line}`);
          drawn = true;
        } else if (now - reported >= PLAIN_PROGRESS_MS) {
          reported = now;
          screen.write(`${line}\n`);
        }
        return;
      }
      const line = describe(event);
      if (line === undefined) return;
      clear();
      screen.write(`${highlight(flat(line), screen.coloured)}\n`);
    },
    close() {
      closed = true;
      rest();
      clear();
    },
  };
}

function highlight(line: string, coloured = false): string {
  const [warning] = /^warning:/.exec(line) ?? [];
  return warning
    ? paint(warning, YELLOW, coloured) + line.slice(warning.length)
    : line;
}

function paint(text: string, colour: number, coloured: boolean): string {
  return coloured ? `\x1b[1;${colour}m${text}\x1b[m` : text;
}

/**
 * Says an error to a person.
 *
 * @param error The error.
 * @param coloured Whether colours are shown.
 * @returns Its message, and a line with the next step where there is one. No
 * line of the message can pass for such a hint.
 */
export function describeError(
  error: ToolsmithError,
  coloured = false,
): string {
  const message = shown(error.message).replace(/\n(?! )/g, "\n  ");
  const label = paint("error:", RED, coloured);
  const hint = error.hint
    ? `${paint("hint:", CYAN, coloured)} ${flat(error.hint)}\n`
    : "";
  return `${label} ${message} [${error.code}]\n${hint}`;
}

/**
 * Makes one line of a text that others may have written.
 *
 * @param text The text.
 * @returns The line, without what would steer a terminal.
 */
export function flat(text: string): string {
  return shown(text).replace(/\s*[\t\n]\s*/g, " ");
}

function shown(text: string): string {
  const cut = text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text;
  return printable(cut);
}

/**
 * The last line of `--json` after a failure.
 *
 * @param error The error.
 * @param now The time, in milliseconds since the epoch.
 */
export function errorLine(error: ToolsmithError, now: number): string {
  const { code } = error;
  const timestamp = new Date(now).toISOString();
  const message = shown(error.message);
  const hint = error.hint && shown(error.hint);
  return jsonLine({ type: "error", timestamp, code, message, hint });
}

/**
 * The last line of `--json` after success.
 *
 * @param result What the command found or did.
 * @param now The time, in milliseconds since the epoch.
 */
export function resultLine(result: object, now: number): string {
  const timestamp = new Date(now).toISOString();
  return jsonLine({ type: "result", timestamp, ...result });
}

/**
 * A line of `--json` with output of a command, which need not be text.
 *
 * @param stream Where the command wrote it.
 * @param chunk The output.
 * @param now The time, in milliseconds since the epoch.
 */
export function outputLine(
  stream: "stdout" | "stderr",
  chunk: Uint8Array,
  now: number,
): string {
  const timestamp = new Date(now).toISOString();
  const base64 = chunk.toBase64();
  return JSON.stringify({ type: "output", timestamp, stream, base64 });
}
