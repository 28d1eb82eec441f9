/**
 * Runs many files of tests, some at a time, the slowest first.
 *
 * @module
 */

/** How {@linkcode runQueue} goes through files. */
export interface QueueOptions {
  /** So many files run at a time. */
  jobs: number;
  /** So many of them boot guests, of which each keeps a processor busy. */
  guests: number;
  /** Tells whether a file boots guests. */
  bootsGuest: (file: string) => boolean;
  /** How long files took the last time, in seconds. */
  durations: Record<string, number>;
  /** Runs one; false starts no other. */
  run: (file: string) => Promise<boolean>;
}

/**
 * Runs files. Those that never ran start first, as they may be slow, and of these
 * those that boot guests.
 *
 * @param files Their paths.
 * @param options How.
 */
export async function runQueue(
  files: string[],
  options: QueueOptions,
): Promise<void> {
  const { jobs, guests, bootsGuest, durations, run } = options;
  const rank = (file: string) =>
    durations[file] ?? (bootsGuest(file) ? Infinity : Number.MAX_VALUE);
  const queue = files.toSorted((a, b) =>
    rank(a) === rank(b) ? 0 : rank(b) - rank(a)
  );
  let booting = 0;
  const worker = async () => {
    while (true) {
      const index = queue.findIndex((file) =>
        booting < guests || !bootsGuest(file)
      );
      // Those that boot guests are left to the workers that do so.
      if (index < 0) return;
      const [file] = queue.splice(index, 1);
      const boots = bootsGuest(file);
      if (boots) booting++;
      try {
        if (!await run(file)) queue.length = 0;
      } finally {
        if (boots) booting--;
      }
    }
  };
  await Promise.all(Array.from({ length: jobs }, worker));
}
