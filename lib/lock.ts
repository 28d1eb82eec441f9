/**
 * A lock among processes that ends with its holder, however that ends.
 *
 * @module
 */

/** What {@linkcode lock} takes. */
export interface LockOptions {
  /** Told once if another process has the lock. @default {undefined} */
  onWait?: () => void;
  /** Ends the wait when aborted. @default {undefined} */
  signal?: AbortSignal;
}

const POLL_MS = 100;

/**
 * Takes the lock of a file (flock on Linux and macOS, LockFileEx on Windows),
 * waiting while another process has it. The file stays behind, empty: to remove
 * it would let two processes hold locks of the same name.
 *
 * Needs `--allow-read` and `--allow-write` for the file.
 *
 * @param path The lock's file, made if it is not there.
 * @param options What to tell, when to give up.
 * @returns The lock; disposing it releases it.
 * @throws The signal's reason when it is aborted.
 */
export async function lock(
  path: string,
  options: LockOptions = {},
): Promise<Disposable> {
  let told = false;
  while (true) {
    const held = await tryLock(path);
    if (held) return held;
    if (!told) options.onWait?.();
    told = true;
    options.signal?.throwIfAborted();
    // A blocking lock() could not be cancelled.
    await new Promise((done) => setTimeout(done, POLL_MS));
    options.signal?.throwIfAborted();
  }
}

/**
 * Takes the lock of a file if nobody has it.
 *
 * Needs `--allow-read` and `--allow-write` for the file.
 *
 * @param path The lock's file, made if it is not there.
 * @returns The lock, or `undefined` if another process has it.
 */
export async function tryLock(path: string): Promise<Disposable | undefined> {
  const file = await Deno.open(path, { read: true, write: true, create: true });
  try {
    if (await file.tryLock(true)) {
      return { [Symbol.dispose]: () => file.close() };
    }
  } catch (error) {
    file.close();
    throw error;
  }
  file.close();
  return undefined;
}
