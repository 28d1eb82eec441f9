/**
 * One patience for all connections of a transfer: they pause together, and
 * what befalls them at the same time counts once.
 *
 * @module
 */
import {
  askedPause,
  isTransient,
  pauseAfter,
  type RetryOptions,
} from "../system/retry.ts";
import { sleep } from "../system/time.ts";

/** The patience of one transfer. */
export interface Patience {
  /** Waits for the end of the pause, if there is one. */
  ready(): Promise<void>;
  /** Begins a pause after a failure, or throws it: for good, or once too often. */
  failed(error: unknown): void;
}

/** What {@linkcode patience} takes. */
export interface PatienceOptions extends RetryOptions {
  /** How many bytes there are by now: where they grow, patience is new. */
  bytes: () => number;
}

/** So much progress makes the next failure the first again, in bytes. */
const PROGRESS = 1024 * 1024;

/**
 * Makes the patience of a transfer.
 *
 * @param options How often, how patiently; `bytes` says how far it is.
 */
export function patience(options: PatienceOptions): Patience {
  const { signal, bytes } = options;
  let attempt = 1;
  let until = 0;
  let mark = bytes();
  return {
    async ready() {
      for (let ms; (ms = until - performance.now()) > 0;) {
        await sleep(ms, signal);
      }
    },
    failed(error) {
      signal?.throwIfAborted();
      if (!isTransient(error)) throw error;
      const now = performance.now();
      if (now < until) {
        until = Math.max(until, now + askedPause(error));
        return;
      }
      if (bytes() - mark >= PROGRESS) attempt = 1;
      mark = bytes();
      until = now + pauseAfter(error, attempt, options);
      attempt++;
    },
  };
}
