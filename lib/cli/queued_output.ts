/**
 * Queues output, so that a blocked pipe does not keep the program from handling
 * signals; detects a standard output that the parent process closed, as `>&-` does.
 */
import { systemError, ToolsmithError, toToolsmithError } from "../errors.ts";
import { basename } from "../path.ts";
import { writeAll } from "../system/write_all.ts";

const O_ACCMODE = 0o3;
const O_RDWR = 0o2;
const DEV_NULL = "/dev/null";
const SHELL_NAME_PATTERN =
  /^(?:ash|bash|busybox|dash|fish|ksh\d*|mksh|sh|zsh)\b/;

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
        .catch((error) => Promise.reject(toOutputError(error, name)))
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

/** Stands in for a closed standard output: every write rejects. */
export const FAILING_STDOUT = {
  write(): Promise<number> {
    const message = "Cannot write to standard output: it is closed";
    const hint = "redirect standard output to a file, or to /dev/null";
    const error = new ToolsmithError("file_unreadable", message, { hint });
    return Promise.reject(error);
  },
};

/**
 * Tells whether standard output was closed when this process started; `false` where
 * that cannot be determined. Deno has then opened /dev/null for reading and writing in
 * its place, so that no other file gets descriptor 1 (Rust,
 * `std::sys::pal::unix::init`).
 *
 * Python and Node.js discard output with such a /dev/null too. A shell opens
 * `>/dev/null` for writing only, so stdout counts as closed if a shell started this
 * process and has another output itself.
 */
export function isStdoutClosed(): boolean {
  if (Deno.build.os !== "linux") return false;
  try {
    if (Deno.readLinkSync("/proc/self/fd/1") !== DEV_NULL) return false;
    const info = Deno.readTextFileSync("/proc/self/fdinfo/1");
    const [, flags] = /^flags:\s*([0-7]+)$/m.exec(info)!;
    if ((parseInt(flags, 8) & O_ACCMODE) !== O_RDWR) return false;
    const parent = `/proc/${Deno.ppid}`;
    const program = basename(Deno.readLinkSync(`${parent}/exe`));
    return SHELL_NAME_PATTERN.test(program) &&
      readLinkIfFound(`${parent}/fd/1`) !== DEV_NULL;
  } catch {
    return false;
  }
}

function readLinkIfFound(path: string): string | undefined {
  try {
    return Deno.readLinkSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
