/**
 * Waiting: for a moment, or for something that may never happen.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";

/** 24 days: a timer for longer would fire at once. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** A limit in time; disposing it lifts it. */
export interface TimeLimit extends Disposable {
  /** Aborts when the time is over, with a `timeout` error as its reason. */
  readonly signal: AbortSignal;
}

/**
 * Limits work in time. One limit covers any number of waits: each takes its
 * signal. The clock is monotonic.
 *
 * @param ms How long the work may take, in milliseconds; `Infinity`, or more than
 * 24 days, for ever.
 * @param what What takes too long, as the message's subject: "The command".
 * @param signal Aborts the limit's signal as well, with its own reason.
 * @returns The limit.
 */
export function timeLimit(
  ms: number,
  what: string,
  signal?: AbortSignal,
): TimeLimit {
  const late = new AbortController();
  const expire = () =>
    late.abort(
      new ToolsmithError(
        "timeout",
        `${what} did not end within ${ms / 1000} s`,
        { hint: "allow more: --timeout SECONDS" },
      ),
    );
  const timer = ms <= MAX_TIMER_MS ? setTimeout(expire, ms) : undefined;
  return {
    signal: signal ? AbortSignal.any([signal, late.signal]) : late.signal,
    [Symbol.dispose]: () => clearTimeout(timer),
  };
}

/**
 * Waits.
 *
 * @param ms How long, in milliseconds.
 * @param signal Ends the wait when aborted.
 * @throws The signal's reason.
 */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((done, fail) => {
    if (signal?.aborted) return fail(signal.reason);
    const abort = () => {
      clearTimeout(timer);
      fail(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      done();
    }, ms);
    signal?.addEventListener("abort", abort, { once: true });
  });
}

/**
 * Waits for a promise, until a signal is aborted.
 *
 * @param promise What is waited for. It goes on after an abort, and may reject
 * without a notice then.
 * @param signal Ends the wait when aborted.
 * @returns What the promise resolves to.
 * @throws The signal's reason, or what the promise rejects with.
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

/**
 * Waits for a promise, but not longer than a time.
 *
 * @param promise What is waited for; a rejection settles it as well.
 * @param ms How long, in milliseconds.
 * @param options A signal that ends the wait when aborted.
 * @returns Whether it has settled.
 * @throws The signal's reason.
 */
export async function settlesWithin(
  promise: Promise<unknown>,
  ms: number,
  options: { signal?: AbortSignal } = {},
): Promise<boolean> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<boolean>((done) => {
    timer = setTimeout(() => done(false), ms);
  });
  const settled = promise.then(() => true, () => true);
  return await abortable(Promise.race([settled, late]), options.signal)
    .finally(() => clearTimeout(timer));
}
