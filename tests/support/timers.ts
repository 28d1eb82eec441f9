/** Fake clocks and timers, so that tests do not wait. */
import { replaceMethod } from "./replace_method.ts";

/** Timers that fire only when told, until disposed. */
export interface HeldTimers extends Disposable {
  /** How many of them are set. */
  count(): number;
  /** Fires all of them. */
  expire(): void;
}

/**
 * Holds all timers with exactly this delay until the test fires them.
 *
 * @param held The delay, in milliseconds, which nothing else uses.
 */
export function holdTimers(held: number): HeldTimers {
  const running = new Map<number, () => void>();
  const { setTimeout: set, clearTimeout: clear } = globalThis;
  let last = -1;
  const undo = replaceMethod(globalThis, {
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
 * Advances `performance.now()` without waiting, until disposed.
 *
 * @returns `pass(ms)` advances the clock and returns the total.
 */
export function installMovingClock(): Disposable & {
  pass(ms: number): number;
} {
  const now = performance.now.bind(performance);
  let passed = 0;
  const undo = replaceMethod(performance, { now: () => now() + passed });
  return {
    pass: (ms) => passed += ms,
    [Symbol.dispose]: () => undo[Symbol.dispose](),
  };
}

/**
 * Changes the delays of timers until disposed.
 *
 * @param change Maps a delay to the actual one. Keep those of connections to a fake
 * VM, whose answers take real time.
 */
export function changeTimerDelays(change: (ms: number) => number): Disposable {
  const setTimer = globalThis.setTimeout;
  globalThis.setTimeout =
    ((done: () => void, ms = 0) =>
      setTimer(done, change(ms))) as typeof setTimeout;
  return {
    [Symbol.dispose]: () => void (globalThis.setTimeout = setTimer),
  };
}

/**
 * Scales the monotonic clock.
 *
 * @param times The factor: with 0.001, two seconds take half an hour.
 */
export function scaleClock(times: number): Disposable {
  const now = performance.now.bind(performance);
  return replaceMethod(performance, { now: () => now() * times });
}

/** A clock that the test advances; the shortest timers remain real. */
export interface ManualClock extends Disposable {
  /** Milliseconds since its creation. */
  readonly time: number;
  /** Number of pending timers. */
  count(): number;
  /** Advances the clock: fires each interval once, then all due timers. */
  pass(ms: number): Promise<void>;
}

/** Replaces the monotonic clock and all timers. */
export function installManualClock(): ManualClock {
  const timeouts = new Map<number, { at: number; work: () => void }>();
  const intervals = new Map<number, () => void>();
  const { setTimeout: set } = globalThis;
  let [time, last] = [0, 0];
  const undo = new DisposableStack();
  undo.use(replaceMethod(performance, { now: () => time }));
  undo.use(replaceMethod(globalThis, {
    setTimeout(work: () => void, ms: number) {
      timeouts.set(++last, { at: time + ms, work });
      return last;
    },
    clearTimeout: (id: number) => timeouts.delete(id),
    setInterval(work: () => void) {
      intervals.set(++last, work);
      return last;
    },
    clearInterval: (id: number) => intervals.delete(id),
  }));
  /** Lets callbacks run for some turns of the event loop. */
  const turns = async () => {
    for (let turn = 0; turn < 5; turn++) await new Promise((go) => set(go));
  };
  return {
    get time() {
      return time;
    },
    count: () => timeouts.size + intervals.size,
    async pass(ms) {
      time += ms;
      intervals.forEach((look) => look());
      await turns();
      for (const [id, { at, work }] of timeouts) {
        if (at > time) continue;
        timeouts.delete(id);
        work();
      }
      await turns();
    },
    [Symbol.dispose]: () => undo.dispose(),
  };
}
