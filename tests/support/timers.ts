/**
 * Lets minutes pass at once, where what is tested waits for them.
 *
 * @module
 */
import { replace } from "./replace.ts";

/** Timers that do not run by themselves, until it is disposed. */
export interface HeldTimers extends Disposable {
  /** How many of them are set. */
  count(): number;
  /** Fires all of them. */
  expire(): void;
}

/**
 * Holds every timer for exactly one time: a test says when it is over.
 *
 * @param held The time, in milliseconds; one that nothing else waits for.
 */
export function heldTimers(held: number): HeldTimers {
  const running = new Map<number, () => void>();
  const { setTimeout: set, clearTimeout: clear } = globalThis;
  let last = -1;
  const undo = replace(globalThis, {
    setTimeout(work: () => void, ms: number) {
      if (ms !== held) return set(work, ms);
      running.set(--last, work);
      return last;
    },
    clearTimeout(id: number) {
      if (!running.delete(id)) clear(id);
    },
  });
  return {
    count: () => running.size,
    expire: () => running.forEach((work) => work()),
    [Symbol.dispose]: () => undo[Symbol.dispose](),
  };
}

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
