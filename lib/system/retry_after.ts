/**
 * How long a server asks to wait.
 *
 * Format: RFC 9110, section 10.2.3 (`Retry-After`), and the Unix times that some
 * registries send instead.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";

/** A failure that may pass, after the pause that the server asks for. */
export class BusyError extends ToolsmithError {
  /** The pause, in milliseconds. */
  readonly pauseMs: number;

  /**
   * Makes the error; its message names the pause.
   *
   * @param error What happened.
   * @param pauseMs The pause that the server asks for, in milliseconds.
   */
  constructor(error: ToolsmithError, pauseMs: number) {
    const pause = formatPause(pauseMs);
    super(error.code, `${error.message} and asks to wait ${pause}`, {
      hint: `try again in ${pause}`,
      cause: error,
    });
    this.pauseMs = pauseMs;
  }
}

/** From here on a number is a time, not seconds from now: 2001, or 31 years. */
const UNIX_TIME = 1e9;

/**
 * Reads how long a server asks to wait.
 *
 * @param text `Retry-After`: seconds, a date, or a Unix time.
 * @param now The time, in milliseconds since the epoch.
 * @returns The pause in milliseconds; 0 where nothing is asked.
 */
export function retryAfterMs(
  text: string | null,
  now: number = Date.now(),
): number {
  if (text === null) return 0;
  const number = /^\s*\d+(?:\.\d+)?\s*$/.test(text) ? Number(text) : undefined;
  const ms = number === undefined
    ? Date.parse(text) - now
    : number < UNIX_TIME
    ? number * 1000
    : number * 1000 - now;
  return Math.max(0, ms || 0);
}

function formatPause(ms: number): string {
  const seconds = Math.ceil(ms / 1000);
  if (seconds < 100) return `${seconds} s`;
  const minutes = Math.ceil(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${Math.ceil(minutes / 60)} h`;
}
