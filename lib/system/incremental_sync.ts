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

  async function syncWhileDue(): Promise<void> {
    try {
      // On a slow disk, another 4 MiB may have been written meanwhile.
      while (isDue()) {
        begun = written;
        await sync();
      }
    } catch (error) {
      failure = { error };
    }
    running = undefined;
  }

  const isDue = () => written - begun >= BYTES_BETWEEN_SYNCS;
  /** Rethrows on every call: the system reports a failed sync only once. */
  const throwFailure = () => {
    if (failure) throw failure.error;
  };
  return {
    /** Reports the number of written bytes, and starts a sync when due. */
    reportWritten(bytes: number): void {
      throwFailure();
      written = bytes;
      if (isDue()) running ??= syncWhileDue();
    },
    async settled(): Promise<void> {
      await running;
      throwFailure();
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
