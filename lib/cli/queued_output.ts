/**
 * Queues output, so that a blocked pipe does not keep the program from handling
 * signals.
 */
import { systemError, ToolsmithError, toToolsmithError } from "../errors.ts";
import { writeAll } from "../system/write_all.ts";

/** The reader closed the pipe (EPIPE), as `| head -1` does. */
export class OutputClosedError extends Error {}

export type QueuedOutput = ReturnType<typeof createQueuedOutput>;

/**
 * Queues the writes to a stream; messages call it `name`, such as "standard output".
 */
export function createQueuedOutput(
  stream: { write(bytes: Uint8Array): Promise<number> },
  name: string,
) {
  let last = Promise.resolve();
  let waiting = 0;
  const encoder = new TextEncoder();
  return {
    /**
     * Queues a write and settles when it is done. Rejects with
     * {@linkcode OutputClosedError} if the reader is gone.
     */
    write(data: string | Uint8Array): Promise<void> {
      const bytes = typeof data === "string" ? encoder.encode(data) : data;
      waiting += bytes.length;
      // After a failed write all later ones fail too: they would leave a gap.
      last = last.then(() => writeAll(stream, bytes))
        .catch((error) => {
          throw toOutputError(error, name);
        })
        .finally(() => waiting -= bytes.length);
      last.catch(() => {});
      return last;
    },
    pendingBytes: () => waiting,
    /** Settles when the queue is empty; rejects if a write failed. */
    flush: () => last,
  };
}

function toOutputError(error: unknown, name: string): Error {
  if (error instanceof OutputClosedError || error instanceof ToolsmithError) {
    return error;
  }
  const { BrokenPipe, ConnectionReset } = Deno.errors;
  if (error instanceof BrokenPipe || error instanceof ConnectionReset) {
    return new OutputClosedError(`${name} is closed`);
  }
  const messagePrefix = `Cannot write to ${name}`;
  const { code, message } = toToolsmithError(
    systemError(error, { messagePrefix }),
  );
  const hint = `redirect ${name} to a file that can be written`;
  return new ToolsmithError(code, message, { hint, cause: error });
}
