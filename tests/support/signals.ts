/** An abort signal that counts its listeners. */

export interface WatchedSignal {
  /** The signal. */
  signal: AbortSignal;
  /** Aborts it. */
  abort(reason?: unknown): void;
  /** Number of listeners. */
  listeners(): number;
  /** Number of listeners ever added. */
  added(): number;
}

/** Makes a signal that is not aborted yet. */
export function watchedSignal(): WatchedSignal {
  const controller = new AbortController();
  const { signal } = controller;
  const heard = new Set<unknown>();
  let added = 0;
  const { addEventListener, removeEventListener } = signal;
  signal.addEventListener = (...args: Parameters<typeof addEventListener>) => {
    heard.add(args[1]);
    added++;
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
    added: () => added,
  };
}
