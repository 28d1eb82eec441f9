/**
 * A signal that knows who listens to it.
 *
 * @module
 */

/** A signal, and what tests ask of it. */
export interface WatchedSignal {
  /** The signal. */
  signal: AbortSignal;
  /** Aborts it. */
  abort(reason?: unknown): void;
  /** How many listen to it. */
  listeners(): number;
}

/** Makes a signal that is not aborted yet. */
export function watchedSignal(): WatchedSignal {
  const controller = new AbortController();
  const { signal } = controller;
  const heard = new Set<unknown>();
  const { addEventListener, removeEventListener } = signal;
  signal.addEventListener = (...args: Parameters<typeof addEventListener>) => {
    heard.add(args[1]);
    addEventListener.apply(signal, args);
  };
  signal.removeEventListener = (
    ...args: Parameters<typeof removeEventListener>
  ) => {
    heard.delete(args[1]);
    removeEventListener.apply(signal, args);
  };
  return {
    signal,
    abort: (reason) => controller.abort(reason),
    listeners: () => heard.size,
  };
}
