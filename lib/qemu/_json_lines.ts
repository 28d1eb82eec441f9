/**
 * JSON over a Unix socket, one object a line, in both directions: as QEMU's
 * monitor and the guest agent speak it.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { writeAll } from "../system/streams.ts";
import { VmDisconnectedError } from "./errors.ts";

/** A command of the monitor or the agent, and its arguments. */
export type Command = [name: string, args?: Record<string, unknown>];

/** One line, in either direction. */
export interface Message extends Record<string, unknown> {
  return?: unknown;
  error?: { class?: string; desc?: string };
}

const MAX_LINE = 4 * 1024 * 1024;

/**
 * Connects to a socket.
 *
 * @param path The socket.
 * @param onMessage Takes each object that comes.
 * @returns The connection.
 */
export async function openLines(
  path: string,
  onMessage: (message: Message) => void,
) {
  const connection = await Deno.connect({ transport: "unix", path });
  let open = true;
  const end = new AbortController();
  const close = () => {
    if (open) connection.close();
    open = false;
    end.abort();
  };
  const closed = read(connection, onMessage).catch(() => {}).then(close);
  let writing: Promise<void> = Promise.resolve();
  return {
    close,
    closed,
    isClosed: () => !open,
    write(message: Record<string, unknown>, prefix?: Uint8Array) {
      const line = new TextEncoder().encode(JSON.stringify(message) + "\n");
      const bytes = new Uint8Array([...prefix ?? [], ...line]);
      const written = writing.then(async () => {
        await writeAll(connection, bytes);
      });
      writing = written.catch(() => {});
      return written.catch((cause) => {
        // The end may be noticed here before it is read.
        const gone = !open || cause instanceof Deno.errors.BrokenPipe ||
          cause instanceof Deno.errors.ConnectionReset;
        throw gone ? new VmDisconnectedError() : cause;
      });
    },
    /** An answer, unless the connection ends or the time is over before. */
    within<T>(ms: number, answer: Promise<T>, late: () => Error): Promise<T> {
      const { promise, resolve, reject } = Promise.withResolvers<T>();
      const timer = setTimeout(() => reject(late()), ms);
      const gone = () => reject(new VmDisconnectedError());
      if (!open) gone();
      end.signal.addEventListener("abort", gone, { once: true });
      answer.then(resolve, reject);
      return promise.finally(() => {
        clearTimeout(timer);
        end.signal.removeEventListener("abort", gone);
      });
    },
  };
}

async function read(
  connection: Deno.Conn,
  onMessage: (message: Message) => void,
) {
  const decoder = new TextDecoder();
  const buffer = new Uint8Array(64 * 1024);
  let rest = "";
  while (true) {
    const count = await connection.read(buffer);
    if (count === null) return;
    rest += decoder.decode(buffer.subarray(0, count), { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop() ?? "";
    // A guest that never ends its line must not fill the memory.
    if (rest.length > MAX_LINE) return;
    for (const line of lines) {
      const message = parse(line);
      if (message) onMessage(message);
    }
  }
}

/** A guest may say what it likes: a line that is no object is dropped. */
function parse(line: string): Message | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === "object" && value !== null
      ? value as Message
      : undefined;
  } catch {
    return undefined;
  }
}

/**
 * The error for an answer that says no.
 *
 * @param who Who said it.
 * @param what What was asked for.
 * @param message The answer.
 */
export function refused(
  who: string,
  what: string,
  message: Message,
): ToolsmithError {
  const desc = message.error?.desc ?? "without a reason";
  return new ToolsmithError("guest_failed", `${who} refused ${what}: ${desc}`);
}
