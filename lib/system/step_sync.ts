/**
 * Syncing a file in steps while it grows, so that little is left to sync at the
 * end.
 *
 * @module
 */

/** The syncs of one file; one at a time. */
export interface StepSync {
  /**
   * Notes how many bytes there are, and begins a sync where that is worth it.
   *
   * @throws What a sync before has failed with: the system says so only once.
   */
  at(bytes: number): void;
  /**
   * Waits until no sync runs.
   *
   * @throws What one has failed with.
   */
  settled(): Promise<void>;
}

/** A sync begins when so many bytes have come since the one before. */
const STEP = 4 * 1024 * 1024;

/**
 * Makes the syncs of a file.
 *
 * @param sync Syncs it once.
 * @param from How many bytes are there, and synced.
 * @returns The syncs; none has begun.
 */
export function stepSync(sync: () => Promise<void>, from = 0): StepSync {
  let there = from;
  let begun = from;
  let running: Promise<void> | undefined;
  let failure: { error: unknown } | undefined;

  function begin(): void {
    if (running || failure || there - begun < STEP) return;
    begun = there;
    running = sync()
      .catch((error) => failure = { error })
      .then(() => {
        running = undefined;
        // On a slow disk much has come meanwhile.
        begin();
      });
  }

  function report(): void {
    if (failure) throw failure.error;
  }

  return {
    at(bytes) {
      report();
      there = bytes;
      begin();
    },
    async settled() {
      while (running) await running;
      report();
    },
  };
}

/**
 * Makes the syncs of a file that is written elsewhere; disposing closes it.
 *
 * Needs `--allow-read` and `--allow-write` for the file.
 *
 * @param path The file; it is opened for the first of them.
 * @returns The syncs.
 */
export function fileStepSync(path: string): StepSync & AsyncDisposable {
  let file: Deno.FsFile | undefined;
  const steps = stepSync(async () => {
    // Windows syncs only what is open for writing.
    file ??= await Deno.open(path, { read: true, write: true });
    await file.syncData();
  });
  return {
    ...steps,
    async [Symbol.asyncDispose]() {
      await steps.settled().catch(() => {});
      file?.close();
    },
  };
}
