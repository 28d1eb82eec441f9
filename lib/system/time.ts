/**
 * Waiting: for a moment, or for something that may never happen.
 *
 * @module
 */

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
 * Waits for a promise, but not longer than a time.
 *
 * @param promise What is waited for; a rejection settles it as well.
 * @param ms How long, in milliseconds.
 * @returns Whether it has settled.
 */
export async function settlesWithin(
  promise: Promise<unknown>,
  ms: number,
): Promise<boolean> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<boolean>((done) => {
    timer = setTimeout(() => done(false), ms);
  });
  const settled = promise.then(() => true, () => true);
  return await Promise.race([settled, late])
    .finally(() => clearTimeout(timer));
}
