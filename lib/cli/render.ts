/** Renders events and errors: as text with a progress bar, or as JSON Lines. */
import type { ToolsmithError } from "../errors.ts";
import type { ToolsmithEvent } from "../events.ts";
import { sanitizeText, terminalSafeJson } from "../system/sanitize_text.ts";
import { EgressReport, eventLine } from "./event_lines.ts";
import { formatDuration, progressBar } from "./format.ts";

/** Where an event view writes, and what the terminal supports. */
export interface Display {
  write(text: string): void;
  /** Whether a line can be erased and redrawn. */
  canRedrawLine: boolean;
  columns: number;
  /** @default {false} */
  coloured?: boolean;
  /** Whether to sum up what the guest's network decided. @default {false} */
  verbose?: boolean;
}

const LOG_PROGRESS_INTERVAL_MS = 5000;
/** In a log, long work prints a line after this much silence. */
const LOG_HEARTBEAT_INTERVAL_MS = 30_000;
/** Long work without measurable progress, by the event that starts it. */
const LONG_WORK_BY_START_EVENT: Partial<
  Record<ToolsmithEvent["type"], string>
> = {
  vm_boot: "booting",
  compress_start: "compressing",
  publish_start: "pushing",
  command_end: "stopping the VM",
};
const ANSI_RED = 31;
const ANSI_YELLOW = 33;
const ANSI_CYAN = 36;
const MAX_MESSAGE_CHARACTERS = 4000;

/** Prints events as lines of text, and their progress as a bar or a counter. */
export function createTextEventView(display: Display) {
  const { write, canRedrawLine, columns, coloured, verbose } = display;
  const egress = new EgressReport();
  let held: ToolsmithEvent[] | undefined;
  let isBarDrawn = false;
  let isClosed = false;
  let startedAt: number | undefined;
  let resumed = 0;
  let lastShown = 0;
  let timer: ReturnType<typeof setInterval> | undefined;
  const eraseLine = () => {
    if (isBarDrawn) write("\r\x1b[K");
    isBarDrawn = false;
  };
  const showProgress = (line: string, logIntervalMs: number) => {
    if (canRedrawLine) {
      write(`\r\x1b[K${line}`);
      isBarDrawn = true;
    } else if (Date.now() - lastShown >= logIntervalMs) {
      lastShown = Date.now();
      write(`${line}\n`);
    }
  };
  const countSeconds = (work: string) => {
    const start = lastShown = Date.now();
    timer = setInterval(() => {
      const line = `${work}: ${formatDuration(Date.now() - start)}`;
      const width = canRedrawLine ? columns - 1 : undefined;
      showProgress(line.slice(0, width), LOG_HEARTBEAT_INTERVAL_MS);
    }, 1000);
    Deno.unrefTimer(timer);
  };
  const stopCounting = () => {
    if (timer === undefined) return;
    clearInterval(timer);
    timer = undefined;
    eraseLine();
  };
  const printLine = (line: string) => {
    eraseLine();
    const warning = colourText("warning:", ANSI_YELLOW, coloured);
    write(`${toSingleLine(line).replace(/^warning:/, warning)}\n`);
  };
  const close = () => {
    isClosed = true;
    stopCounting();
    eraseLine();
  };
  const onEvent = (event: ToolsmithEvent) => {
    if (held) return void held.push(event);
    const work = LONG_WORK_BY_START_EVENT[event.type];
    if (event.type !== "warning") stopCounting();
    if (work && !isClosed) countSeconds(work);
    switch (event.type) {
      case "download_start":
      case "image_inspected":
        startedAt = lastShown = Date.now();
        resumed = event.type === "download_start" ? event.resumed : 0;
        break;
      case "download_progress":
      case "checksum_progress": {
        // Without a start event there is no rate yet.
        if (startedAt === undefined) {
          startedAt = lastShown = Date.now();
          return;
        }
        const elapsedMs = Date.now() - startedAt;
        const bar = progressBar({ ...event, resumed }, elapsedMs, columns);
        return showProgress(bar, LOG_PROGRESS_INTERVAL_MS);
      }
    }
    const line = event.type === "egress" ? egress.add(event) : eventLine(event);
    if (line !== undefined) printLine(line);
  };
  return {
    onEvent,
    /**
     * Erases the progress bar and stops counting seconds, as the guest uses the
     * terminal from now on. Later events are still printed, one line each.
     */
    close,
    /** Holds events back while the guest uses the whole screen, or prints them then. */
    hold(isHeld: boolean) {
      const late = held ?? [];
      held = isHeld ? [] : undefined;
      stopCounting();
      eraseLine();
      late.forEach(onEvent);
    },
    /** Closes the view, and sums up what the network decided. */
    end() {
      close();
      if (verbose) egress.summary().forEach(printLine);
    },
  };
}

function colourText(text: string, colour: number, coloured = false): string {
  return coloured ? `\x1b[1;${colour}m${text}\x1b[m` : text;
}

export interface ErrorStyle {
  /** @default {false} */
  coloured?: boolean;
  /** Whether to print the causes too. @default {false} */
  verbose?: boolean;
}

/**
 * Formats an error as text: message, code, causes and hint. Lines of the message
 * are indented, so that none can pass for a hint.
 */
export function formatError(
  error: ToolsmithError,
  { coloured = false, verbose = false }: ErrorStyle = {},
): string {
  const indented = (text: string) =>
    truncateAndSanitize(text).replace(/\n(?! )/g, "\n  ");
  const label = colourText("error:", ANSI_RED, coloured);
  const causes = (verbose ? causeMessages(error) : [])
    .map((cause) => `  Caused by: ${indented(cause)}\n`);
  const message = `${indented(error.message)} [${error.code}]`;
  const text = `${label} ${message}\n${causes.join("")}`;
  if (!error.hint) return text;
  const hintLabel = colourText("hint:", ANSI_CYAN, coloured);
  return `${text}${hintLabel} ${toSingleLine(error.hint)}\n`;
}

/** Returns the messages of the chain of causes, nearest first. */
function causeMessages(error: Error): string[] {
  const causes: string[] = [];
  const seen = new Set<unknown>([error]);
  for (let { cause } = error; cause instanceof Error && !seen.has(cause);) {
    seen.add(cause);
    causes.push(redactedMessage(cause));
    cause = cause.cause;
  }
  return causes;
}

/** Removes quoted JSON (V8's SyntaxError), user names and query strings of URLs. */
function redactedMessage({ name, message }: Error): string {
  const text = name === "SyntaxError"
    ? message.replace(/, (?:\.{3})?".*/s, "")
    : message;
  return text.replace(/\b(https?:\/\/)[^\s/?#]*@/gi, "$1")
    .replace(/\b(https?:\/\/[^\s?#]*)[?#][^\s)'"]*/gi, "$1");
}

/** Makes untrusted text one line without terminal control characters. */
export function toSingleLine(text: string): string {
  return truncateAndSanitize(text).replace(/\s*[\t\n]\s*/g, " ");
}

function truncateAndSanitize(text: string): string {
  const cut = text.length > MAX_MESSAGE_CHARACTERS
    ? `${text.slice(0, MAX_MESSAGE_CHARACTERS)}…`
    : text;
  return sanitizeText(cut);
}

/** Formats the last line of `--json` after a failure. */
export function jsonErrorLine(
  error: ToolsmithError,
  { verbose = false }: ErrorStyle = {},
): string {
  return jsonLine("error", {
    code: error.code,
    message: truncateAndSanitize(error.message),
    hint: error.hint && truncateAndSanitize(error.hint),
    causes: verbose ? causeMessages(error).map(truncateAndSanitize) : undefined,
  });
}

/** Formats a line of `--json` that is not an event. */
export function jsonLine(
  type: "result" | "error" | "output",
  fields: object,
): string {
  const timestamp = new Date().toISOString();
  return terminalSafeJson({ type, timestamp, ...fields });
}
