/**
 * JSON over a Unix socket, one object a line, in both directions: as QEMU's
 * monitor and the guest agent speak it.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { isObject } from "../system/json.ts";
import { writeAll } from "../system/streams.ts";
import { oneLine } from "../system/text.ts";
import { abortable } from "../system/time.ts";
import {
  isDisconnection,
  RefusedError,
  VmDisconnectedError,
} from "./errors.ts";

/** A command of the monitor or the agent, and its arguments. */
export type Command = [name: string, args?: Record<string, unknown>];

/** One line, in either direction. Whoever sent it may have put anything in. */
export type Message = Record<string, unknown>;

/** Limits of one wait. */
export interface WaitOptions {
  /** How long, in milliseconds. */
  ms: number;
  /** What to throw when the time is over. */
  late: () => Error;
  /** Ends the wait when aborted. */
  signal?: AbortSignal;
}

/** No answer of QEMU or of the agent comes near to it. */
const MAX_LINE_BYTES = 4 * 1024 * 1024;
const NEWLINE = 0x0a;

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
  const end = new AbortController();
  const close = (reason: Error = new VmDisconnectedError()) => {
    if (end.signal.aborted) return;
    connection.close();
    end.abort(reason);
  };
  const closed = read(connection, onMessage).then(
    () => close(),
    (error) => close(error instanceof ToolsmithError ? error : undefined),
  );
  let writing: Promise<void> = Promise.resolve();
  return {
    close: () => close(),
    closed,
    /** Aborts when the connection ends; its reason says why. */
    ended: end.signal,
    write(message: Message, prefix?: Uint8Array): Promise<void> {
      const line = new TextEncoder().encode(JSON.stringify(message) + "\n");
      const bytes = new Uint8Array([...prefix ?? [], ...line]);
      const written = writing.then(() => writeAll(connection, bytes));
      writing = written.catch(() => {});
      return written.catch((cause) => {
        end.signal.throwIfAborted();
        // The end may be noticed here before it is read.
        throw isDisconnection(cause) ? new VmDisconnectedError() : cause;
      });
    },
    /** An answer, unless the connection ends or the wait's limits come first. */
    async within<T>(answer: Promise<T>, options: WaitOptions): Promise<T> {
      const { ms, late, signal } = options;
      const time = new AbortController();
      const timer = setTimeout(() => time.abort(late()), ms);
      const signals = [end.signal, time.signal, ...signal ? [signal] : []];
      try {
        return await abortable(answer, AbortSignal.any(signals));
      } finally {
        clearTimeout(timer);
      }
    },
  };
}

/** Hands on each line that is an object; each byte is looked at once. */
async function read(
  connection: Deno.Conn,
  onMessage: (message: Message) => void,
) {
  const buffer = new Uint8Array(64 * 1024);
  const decoder = new TextDecoder();
  let line: string[] = [];
  let length = 0;
  while (true) {
    const count = await connection.read(buffer);
    if (count === null) return;
    let rest = buffer.subarray(0, count);
    while (rest.length > 0) {
      const at = rest.indexOf(NEWLINE);
      const part = at < 0 ? rest : rest.subarray(0, at);
      length += part.length;
      if (length > MAX_LINE_BYTES) throw tooLong();
      line.push(decoder.decode(part, { stream: at < 0 }));
      if (at < 0) break;
      const message = parse(line.join(""));
      if (message) onMessage(message);
      line = [];
      length = 0;
      rest = rest.subarray(at + 1);
    }
  }
}

function tooLong(): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `The machine sent a line of more than ${MAX_LINE_BYTES} bytes`,
  );
}

/** A guest may say what it likes: a line that is no object is dropped. */
function parse(line: string): Message | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/**
 * The error for an answer that says no.
 *
 * @param who Who said it.
 * @param what What was asked for.
 * @param error The answer's `error`, which may be anything.
 */
export function refused(
  who: string,
  what: string,
  error: unknown,
): RefusedError {
  const desc = isObject(error) && typeof error.desc === "string"
    ? oneLine(error.desc)
    : "without a reason";
  return new RefusedError(`${who} refused ${what}: ${desc}`);
}
