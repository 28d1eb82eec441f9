/**
 * Syncs a growing file every 4 MiB, so that little is left to sync at the end.
 */

const BYTES_BETWEEN_SYNCS = 4 * 1024 * 1024;

/** Creates the incremental syncs of a file, one at a time. `sync` syncs it once. */
export function createIncrementalSync(sync: () => Promise<void>) {
  let written = 0;
  let begun = 0;
  let running: Promise<void> | undefined;
  let failure: { error: unknown } | undefined;

  function begin(): void {
    if (running || failure || written - begun < BYTES_BETWEEN_SYNCS) return;
    begun = written;
    running = sync()
      .catch((error) => failure = { error })
      .then(() => {
        running = undefined;
        // On a slow disk, another 4 MiB may have been written meanwhile.
        begin();
      });
  }

  /** Rethrows on every call: the system reports a failed sync only once. */
  function report(): void {
    if (failure) throw failure.error;
  }

  return {
    /** Reports the number of written bytes, and starts a sync when due. */
    reportWritten(bytes: number): void {
      report();
      written = bytes;
      begin();
    },
    /** Waits for the running sync. */
    async settled(): Promise<void> {
      while (running) await running;
      report();
    },
  };
}

/** Syncs a file that someone else writes; disposing closes its handle. */
export function openIncrementalFileSync(path: string) {
  let file: Deno.FsFile | undefined;
  const steps = createIncrementalSync(async () => {
    // Windows syncs only a file that is open for writing.
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
