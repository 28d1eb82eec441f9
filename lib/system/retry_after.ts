/**
 * Parses `Retry-After`: how long a server asks to wait.
 *
 * Format: RFC 9110, section 10.2.3 (`Retry-After`), and the Unix times that some
 * registries send instead.
 */
import { ToolsmithError } from "../errors.ts";

/** A transient failure with the server's Retry-After. */
export class RetryAfterError extends ToolsmithError {
  /** Wraps an error, and adds the wait to its message and hint. */
  constructor(error: ToolsmithError, readonly retryAfterMs: number) {
    const pause = formatWait(retryAfterMs);
    super(error.code, `${error.message} and asks to wait ${pause}`, {
      hint: `try again in ${pause}`,
      cause: error,
    });
  }
}

/** Numbers from here on are Unix times, not seconds to wait: 2001, or 31 years. */
const MIN_UNIX_TIME = 1e9;

/** Parses seconds, a date, or a Unix time; 0 for missing or malformed text. */
export function parseRetryAfterMs(
  text: string | null,
  now: number = Date.now(),
): number {
  if (text === null) return 0;
  const number = /^\s*\d+(?:\.\d+)?\s*$/.test(text) ? Number(text) : undefined;
  const ms = number === undefined
    ? Date.parse(text) - now
    : number < MIN_UNIX_TIME
    ? number * 1000
    : number * 1000 - now;
  return Math.max(0, ms || 0);
}

function formatWait(ms: number): string {
  const seconds = Math.ceil(ms / 1000);
  if (seconds < 100) return `${seconds} s`;
  const minutes = Math.ceil(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${Math.ceil(minutes / 60)} h`;
}
