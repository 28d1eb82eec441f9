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
  const file = await open(path);
  const request = requester(file);
  try {
    for (let told = false; !await request(); told = true) {
      if (!told) options.onWait?.();
      options.signal?.throwIfAborted();
      // A blocking lock() could not be cancelled.
      await new Promise((done) => setTimeout(done, POLL_MS));
      options.signal?.throwIfAborted();
    }
  } catch (error) {
    file.close();
    throw error;
  }
  return { [Symbol.dispose]: () => file.close() };
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
  const file = await open(path);
  let held = false;
  try {
    held = await requester(file)();
  } finally {
    if (!held) file.close();
  }
  return held ? { [Symbol.dispose]: () => file.close() } : undefined;
}

function open(path: string): Promise<Deno.FsFile> {
  return Deno.open(path, { read: true, write: true, create: true });
}

/** `tryLock` came to Deno after `lock`. */
type MaybeTryLock = Deno.FsFile & {
  tryLock?: (exclusive: boolean) => Promise<boolean>;
};

/** Returns a function that asks for the lock, and tells whether it is there. */
function requester(file: MaybeTryLock): () => Promise<boolean> {
  const { tryLock } = file;
  if (tryLock) return () => tryLock.call(file, true);
  // Older versions of Deno can only wait: what does not come soon is held.
  const granted = file.lock(true).then(() => true);
  granted.catch(() => {});
  return () => {
    let timer: ReturnType<typeof setTimeout>;
    const late = new Promise<boolean>((done) => {
      timer = setTimeout(() => done(false), POLL_MS);
    });
    return Promise.race([granted, late]).finally(() => clearTimeout(timer));
  };
}
