/**
 * Output that does not block: while nobody reads a pipe, signals are still
 * heeded.
 *
 * @module
 */
import { systemError, ToolsmithError, toToolsmithError } from "../errors.ts";
import { writeAll } from "../system/streams.ts";

/** Standard output has been closed by whoever read it, as by `| head -1`. */
export class OutputClosedError extends Error {}

/** One of this process's output streams. */
export interface Output {
  /**
   * Writes in order, and settles when it is written.
   *
   * @throws {OutputClosedError}
   * @throws {ToolsmithError} `disk_full`, `file_unreadable`.
   */
  write(data: string | Uint8Array): Promise<void>;
  /** Bytes that wait to be written. */
  waiting(): number;
  /** Settles when all is written; rejects if any could not be. */
  flushed(): Promise<void>;
}

/**
 * Makes an output of a stream.
 *
 * @param stream Where to write.
 * @param name What messages call it: "standard output".
 * @returns The output.
 */
export function queuedOutput(
  stream: { write(bytes: Uint8Array): Promise<number> },
  name: string,
): Output {
  let last = Promise.resolve();
  let waiting = 0;
  const encoder = new TextEncoder();
  return {
    write(data) {
      const bytes = typeof data === "string" ? encoder.encode(data) : data;
      waiting += bytes.length;
      // After a failure nothing more is tried: it would leave a gap.
      last = last.then(() => writeAll(stream, bytes))
        .catch((error) => {
          throw asOutputError(error, name);
        })
        .finally(() => waiting -= bytes.length);
      last.catch(() => {});
      return last;
    },
    waiting: () => waiting,
    flushed: () => last,
  };
}

function asOutputError(error: unknown, name: string): Error {
  if (error instanceof OutputClosedError || error instanceof ToolsmithError) {
    return error;
  }
  const { BrokenPipe, ConnectionReset } = Deno.errors;
  if (error instanceof BrokenPipe || error instanceof ConnectionReset) {
    return new OutputClosedError(`${name} is closed`);
  }
  const what = `Cannot write to ${name}`;
  const { code, message } = toToolsmithError(systemError(error, { what }));
  const hint = `redirect ${name} to another place`;
  return new ToolsmithError(code, message, { hint, cause: error });
}
