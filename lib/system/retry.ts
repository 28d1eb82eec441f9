/** Retries transient failures with backoff, within a retry budget. */
import { type ErrorCode, ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import { sleep } from "./time.ts";

export interface RetryOptions {
  /** Maximum number of retries. @default {3} */
  retries?: number;
  /** First backoff in milliseconds; doubles with each retry. @default {1000} */
  retryDelayMs?: number;
  signal?: AbortSignal;
  onRetry?: (retry: ScheduledRetry) => void;
}

export interface ScheduledRetry {
  error: ToolsmithError;
  /** Number of the next attempt; the first was 1. */
  attempt: number;
  attempts: number;
  /** Backoff before the attempt, in milliseconds. */
  delayMs: number;
}

/** Remaining retries of an operation, shared by all of its connections. */
export type RetryBudget = ReturnType<typeof createRetryBudget>;

const MAX_BACKOFF_MS = 30_000;
/** A longer Retry-After ends the retries. */
const MAX_RETRY_AFTER_MS = 300_000;
/** Bytes of progress that restore all retries. */
const BYTES_TO_RESTORE_RETRIES = 1024 * 1024;

const TRANSIENT_CODES = new Set<ErrorCode>([
  "rate_limited",
  "registry_unavailable",
  "connection_failed",
  "transfer_interrupted",
  "transfer_stalled",
]);

export async function retryTransient<T>(
  work: () => Promise<T>,
  options: RetryOptions = {},
): Promise<T> {
  const budget = createRetryBudget(options);
  for (;;) {
    try {
      return await work();
    } catch (error) {
      budget.recordFailure(error);
      await budget.waitForBackoff();
    }
  }
}

export function retryReporter(emit: Emit, image: string) {
  return ({ error: { code, message }, ...retry }: ScheduledRetry) =>
    emit({ type: "retry", image, code, message, ...retry });
}

/**
 * Creates a retry budget. `progress` returns the bytes transferred so far; progress
 * restores retries.
 */
export function createRetryBudget(
  options: RetryOptions,
  progress: () => number = () => 0,
) {
  const { retries = 3, retryDelayMs = 1000, signal, onRetry } = options;
  let attempt = 1;
  let backoffEnd = 0;
  let lastProgress = progress();
  return {
    async waitForBackoff(): Promise<void> {
      for (let ms; (ms = backoffEnd - performance.now()) > 0;) {
        await sleep(ms, signal);
      }
    },
    /**
     * Starts a backoff after a failure, or throws the failure if it is permanent, no
     * retry is left, or Retry-After is too long. Failures during a backoff use no
     * further retry, because all connections pause together.
     */
    recordFailure(error: unknown): void {
      signal?.throwIfAborted();
      const askedMs = error instanceof RetryAfterError ? error.retryAfterMs : 0;
      if (!isTransientError(error) || askedMs > MAX_RETRY_AFTER_MS) throw error;
      const now = performance.now();
      if (now < backoffEnd) {
        backoffEnd = Math.max(backoffEnd, now + askedMs);
        return;
      }
      if (progress() - lastProgress >= BYTES_TO_RESTORE_RETRIES) attempt = 1;
      lastProgress = progress();
      if (attempt > retries) throw error;
      const wholeMs = retryDelayMs * 2 ** (attempt - 1);
      // Hosts should not retry at once.
      const jitter = 0.75 + Math.random() / 2;
      const backoffMs = Math.round(Math.min(wholeMs, MAX_BACKOFF_MS) * jitter);
      const delayMs = Math.max(backoffMs, askedMs);
      backoffEnd = now + delayMs;
      attempt++;
      onRetry?.({ error, attempt, attempts: retries + 1, delayMs });
    },
  };
}

export function isTransientError(error: unknown): error is ToolsmithError {
  return error instanceof ToolsmithError && TRANSIENT_CODES.has(error.code);
}

/** A transient failure with the server's Retry-After. */
export class RetryAfterError extends ToolsmithError {
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

/**
 * Parses `Retry-After` (RFC 9110, section 10.2.3): seconds, a date, or a Unix time, which
 * some registries send instead; 0 for missing or malformed text.
 */
export function parseRetryAfterMs(
  text: string | null,
  now: number = Date.now(),
): number {
  if (!/^\s*\d+(?:\.\d+)?\s*$/.test(text ?? "")) {
    return Math.max(0, Date.parse(text ?? "") - now || 0);
  }
  const seconds = Number(text);
  if (seconds < MIN_UNIX_TIME) return seconds * 1000;
  return Math.max(0, seconds * 1000 - now);
}

function formatWait(ms: number): string {
  const seconds = Math.ceil(ms / 1000);
  if (seconds < 100) return `${seconds} s`;
  const minutes = Math.ceil(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${Math.ceil(minutes / 60)} h`;
}
