/**
 * Retries after transient failures.
 *
 * @module
 */
import { type ErrorCode, ToolsmithError } from "../errors.ts";
import { BusyError } from "./retry_after.ts";
import { sleep } from "./time.ts";

/** How often, and how patiently, something is tried. */
export interface RetryOptions {
  /** Retries after a transient failure. @default {3} */
  retries?: number;
  /** Pause before the second attempt, in milliseconds; it doubles. @default {1000} */
  retryDelayMs?: number;
  /** Ends the pause when aborted. @default {undefined} */
  signal?: AbortSignal;
  /** Notified before each pause. @default {undefined} */
  onRetry?: (retry: Retry) => void;
}

/** A failure that is about to be tried again. */
export interface Retry {
  /** What happened. */
  error: ToolsmithError;
  /** Which attempt comes next; the first was 1. */
  attempt: number;
  /** How many attempts there are in all. */
  attempts: number;
  /** Pause before it, in milliseconds. */
  delayMs: number;
}

const LONGEST_MS = 30_000;
/** Who asks to wait longer is not waited for, in milliseconds. */
const LONGEST_PAUSE_MS = 300_000;

const TRANSIENT = new Set<ErrorCode>([
  "rate_limited",
  "registry_unavailable",
  "connection_failed",
  "transfer_interrupted",
  "transfer_stalled",
]);

/**
 * Does something, again after a pause that doubles where it failed in a way
 * that may pass: a rate limit, a server error, a cut or stalled transfer.
 *
 * @param work What to do; it gets the attempt's number, from 1.
 * @param options How often, how patiently.
 * @returns What `work` returns.
 * @throws The last failure, or the signal's reason.
 */
export async function retry<T>(
  work: (attempt: number) => Promise<T>,
  options: RetryOptions = {},
): Promise<T> {
  for (let attempt = 1;; attempt++) {
    try {
      return await work(attempt);
    } catch (error) {
      await sleep(pauseAfter(error, attempt, options), options.signal);
    }
  }
}

/**
 * Decides whether something is tried again, and notifies `onRetry` if it is.
 *
 * @param error What it has failed with.
 * @param attempt The attempt that failed, from 1.
 * @param options How often, how patiently.
 * @returns The pause before the next attempt, in milliseconds: the usual one, or
 * what the server asks for.
 * @throws The error, where it does not pass, no retry is left, or the server
 * asks for too long a pause.
 */
export function pauseAfter(
  error: unknown,
  attempt: number,
  { retries = 3, retryDelayMs, onRetry }: RetryOptions,
): number {
  const askedMs = askedPause(error);
  if (!isTransient(error) || attempt > retries) throw error;
  const delayMs = Math.max(backoffMs(attempt, retryDelayMs), askedMs);
  onRetry?.({ error, attempt: attempt + 1, attempts: retries + 1, delayMs });
  return delayMs;
}

/**
 * Reads how long the server asks to wait.
 *
 * @param error What was thrown.
 * @returns The pause, in milliseconds; 0 where none is asked for.
 * @throws The error, where the server asks for too long a pause.
 */
export function askedPause(error: unknown): number {
  if (!(error instanceof BusyError)) return 0;
  if (error.pauseMs > LONGEST_PAUSE_MS) throw error;
  return error.pauseMs;
}

/**
 * Whether trying the same again may help.
 *
 * @param error Whatever was thrown.
 * @returns `true` for the failures that may be gone a moment later.
 */
export function isTransient(error: unknown): error is ToolsmithError {
  return error instanceof ToolsmithError && TRANSIENT.has(error.code);
}

/**
 * The pause after a failed attempt: it doubles, up to half a minute, and is
 * spread so that many hosts do not come back at once.
 *
 * @param attempt The attempt that failed, from 1.
 * @param firstMs Pause after the first, in milliseconds.
 * @returns The pause, in milliseconds.
 */
export function backoffMs(attempt: number, firstMs = 1000): number {
  const whole = Math.min(firstMs * 2 ** (attempt - 1), LONGEST_MS);
  return Math.round(whole * (0.75 + Math.random() / 2));
}
