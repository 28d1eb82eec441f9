/**
 * JSON lines over a Unix socket: the wire format of QMP and of the guest agent.
 */
import { ToolsmithError } from "../errors.ts";
import {
  isJsonObject,
  type JsonObject,
  jsonObjectOrEmpty,
} from "../system/json.ts";
import { writeAll } from "../system/write_all.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { abortable, anySignal, startDeadline } from "../system/time.ts";
import {
  CommandRefusedError,
  connectToVmSocket,
  VmDisconnectedError,
} from "./errors.ts";

/** A QMP or guest agent command and its arguments. */
export type QmpCommand = [name: string, args?: Record<string, unknown>];

export interface JsonPeer {
  /** Name for error messages, such as "QEMU". */
  name: string;
  answerTimeoutMs: number;
  timeoutErrorCode: "boot_failed" | "guest_failed";
  /** Receives messages that answer no command, such as events. */
  onUnsolicited(message: JsonObject): void;
}

/** Far more than any answer of QEMU or the agent. */
const MAX_LINE_CHARS = 4 * 1024 * 1024;

export async function connectJsonLines(path: string, peer: JsonPeer) {
  const connection = await connectToVmSocket(path);
  const end = new AbortController();
  const close = (reason: Error = new VmDisconnectedError()) => {
    connection[Symbol.dispose]();
    end.abort(reason);
  };
  const pending = new Map<unknown, (message: JsonObject) => void>();
  const reading = readJsonLines(connection, (message) => {
    // Older agents do not repeat the id.
    const isAnswer = "return" in message || "error" in message;
    const id = message.id ?? (isAnswer ? [...pending.keys()][0] : undefined);
    (pending.get(id) ?? peer.onUnsolicited)(message);
  }).then(close, () => close());
  let lastWrite: Promise<void> = Promise.resolve();
  async function writeMessage(
    message: JsonObject,
    prefix: Uint8Array = new Uint8Array(),
  ): Promise<void> {
    const line = new TextEncoder().encode(JSON.stringify(message) + "\n");
    const bytes = new Uint8Array([...prefix, ...line]);
    const written = lastWrite.then(() => writeAll(connection, bytes));
    lastWrite = written.catch(() => {});
    await written.catch(() => {
      // EPIPE may be reported here before the reader sees the end.
      throw end.signal.reason ?? new VmDisconnectedError();
    });
  }
  async function waitForAnswer<T>(
    answer: Promise<T>,
    what: string,
    signal?: AbortSignal,
  ): Promise<T> {
    const ms = peer.answerTimeoutMs;
    const why = `${peer.name} did not answer ${what} within ${ms / 1000} s`;
    const late = () => new ToolsmithError(peer.timeoutErrorCode, why);
    using limit = startDeadline(ms, late, signal);
    return await abortable(answer, anySignal(end.signal, limit.signal));
  }
  return {
    /** Aborts when the connection ends, with the reason. */
    disconnectSignal: end.signal,
    writeMessage,
    /** Waits for an answer; rejects when the connection ends first. */
    waitForAnswer,
    /** Sends a command and returns its answer, unvalidated. */
    async execute(
      [execute, args]: QmpCommand,
      signal?: AbortSignal,
    ): Promise<unknown> {
      const id = randomId();
      const answer = Promise.withResolvers<JsonObject>();
      pending.set(id, answer.resolve);
      // The timeout covers the write too: a peer that does not read blocks it.
      const answered = writeMessage({ execute, arguments: args, id })
        .then(() => answer.promise);
      const message = await waitForAnswer(answered, execute, signal)
        .finally(() => pending.delete(id));
      if (!("error" in message)) return message.return;
      const { desc } = jsonObjectOrEmpty(message.error);
      const why = typeof desc === "string"
        ? sanitizeLine(desc)
        : "no reason given";
      throw new CommandRefusedError(`${peer.name} refused ${execute}: ${why}`);
    },
    async [Symbol.asyncDispose]() {
      close();
      await reading;
    },
  };
}

/**
 * Passes on each line that is a JSON object, in linear time, until the connection ends.
 * Returns an error when a line is too long.
 */
async function readJsonLines(
  connection: Deno.Conn,
  onMessage: (message: JsonObject) => void,
): Promise<ToolsmithError | undefined> {
  const buffer = new Uint8Array(64 * 1024);
  const decoder = new TextDecoder();
  let line = "";
  while (true) {
    const count = await connection.read(buffer);
    if (count === null) return;
    const text = decoder.decode(buffer.subarray(0, count), { stream: true });
    const [rest, ...more] = text.split("\n");
    line += rest;
    if (line.length > MAX_LINE_CHARS) {
      return new ToolsmithError(
        "guest_failed",
        `QEMU or the guest agent sent a line longer than ${MAX_LINE_CHARS} characters`,
      );
    }
    for (const next of more) {
      const message = parseJsonObject(line);
      if (message) onMessage(message);
      line = next;
    }
  }
}

/** An id for a command or a `guest-sync`, which the answer repeats. */
export function randomId(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/** Returns `undefined` for malformed lines: a guest may send anything. */
function parseJsonObject(line: string): JsonObject | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return isJsonObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}
