/**
 * Lets minutes pass at once, where what is tested waits for them.
 *
 * @module
 */

/**
 * Replaces the program's timers, until it is disposed.
 *
 * @param change Says how long a timer for so many milliseconds takes. Those of
 * connections to a fake machine are to stay: answers take their time.
 */
export function hurriedTimers(change: (ms: number) => number): Disposable {
  const setTimer = globalThis.setTimeout;
  globalThis.setTimeout =
    ((done: () => void, ms = 0) =>
      setTimer(done, change(ms))) as typeof setTimeout;
  return {
    [Symbol.dispose]: () => void (globalThis.setTimeout = setTimer),
  };
}
