/** Deadlines, sleep, and waits that a signal can abort. */
import { ToolsmithError } from "../errors.ts";

/** 24 days: a longer timer would fire at once. */
const MAX_TIMER_MS = 2 ** 31 - 1;

export function anySignal(...signals: (AbortSignal | undefined)[]) {
  return AbortSignal.any(signals.filter((signal) => signal !== undefined));
}

/** A time limit; disposing cancels it. */
export interface Deadline extends Disposable {
  /** Aborts when the time is up, by default with a `timeout` error. */
  readonly signal: AbortSignal;
  /** Restarts the full time. */
  restart(): void;
  /** Stops the clock until `restart()`. */
  pause(): void;
}

/**
 * Starts a deadline, whose signal can limit any number of waits: after `ms`, or never
 * for `Infinity` and more than 24 days. The clock is monotonic.
 *
 * @param subject Subject of the timeout message, such as "The command", or a factory of
 * the abort reason.
 * @param signal Also aborts the deadline's signal, with its own reason.
 */
export function startDeadline(
  ms: number | undefined = Infinity,
  subject: string | (() => Error),
  signal?: AbortSignal,
): Deadline {
  const late = new AbortController();
  const createReason = () =>
    typeof subject === "string" ? timeoutError(subject, ms) : subject();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const pause = () => clearTimeout(timer);
  const restart = () => {
    pause();
    if (ms > MAX_TIMER_MS) return;
    timer = setTimeout(() => late.abort(createReason()), ms);
  };
  restart();
  const both = anySignal(signal, late.signal);
  return { signal: both, restart, pause, [Symbol.dispose]: pause };
}

function timeoutError(subject: string, ms: number): ToolsmithError {
  const message = `${subject} did not end within ${ms / 1000} s`;
  const hint = "allow more time: --timeout SECONDS";
  return new ToolsmithError("timeout", message, { hint });
}

export async function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  await settlesWithin(new Promise(() => {}), ms, { signal });
}

/**
 * Waits for a promise or an abort, whichever comes first. The promise continues after
 * an abort; a later rejection is ignored.
 */
export async function abortable<T>(
  promise: Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  if (!signal) return await promise;
  promise.catch(() => {});
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const abort = () => aborted.reject(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  try {
    return await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

/** Waits up to `ms`; returns whether the promise resolved or rejected in time. */
export async function settlesWithin(
  promise: Promise<unknown>,
  ms: number,
  options: { signal?: AbortSignal } = {},
): Promise<boolean> {
  const { promise: first, resolve } = Promise.withResolvers<boolean>();
  const timer = ms > MAX_TIMER_MS
    ? undefined
    : setTimeout(() => resolve(false), ms);
  const settle = () => resolve(true);
  promise.then(settle, settle);
  return await abortable(first, options.signal)
    .finally(() => clearTimeout(timer));
}
