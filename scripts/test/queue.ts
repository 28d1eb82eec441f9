/** Runs test files in parallel, the slowest first. */

/** Options of {@linkcode runQueue}. */
export interface QueueOptions {
  /** Number of files that run in parallel. */
  jobs: number;
  /** How many of them may boot guests, as each keeps a processor busy. */
  guests: number;
  bootsGuest: (file: string) => boolean;
  /** The seconds that each file took last time. */
  durations: Record<string, number>;
  /** Runs a file; `false` stops the queue. */
  run: (file: string) => Promise<boolean>;
}

/**
 * Runs files. Unknown ones start first, as they may be slow, with those that boot
 * guests at the head.
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
      // Only files with guests are left: other workers run them.
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
