/**
 * Speaks to QEMU's monitor, in the QEMU Machine Protocol
 * (docs/interop/qmp-spec).
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { isObject } from "../system/json.ts";
import {
  type Command,
  type Message,
  openLines,
  refused,
} from "./_json_lines.ts";

export type { Command };

/** Something that QEMU reports without being asked. */
export interface QmpEvent {
  /** Its name, such as `SHUTDOWN`. */
  event: string;
  /** What it carries. */
  data?: Record<string, unknown>;
}

/** A connection to QEMU's monitor. */
export interface Qmp extends Disposable {
  /** QEMU's version, such as `7.2.22`. */
  readonly version: string;
  /** Settles when the connection has ended. Never rejects. */
  readonly closed: Promise<void>;
  /**
   * Sends commands at once, and waits for all answers: they come in the order of
   * the commands, or the first refusal is thrown.
   */
  send(...commands: Command[]): Promise<unknown[]>;
}

/** What {@linkcode openQmp} takes. */
export interface OpenQmpOptions {
  /** Takes QEMU's events. */
  onEvent?: (event: QmpEvent) => void;
  /** Ends the wait for QEMU's greeting when aborted. */
  signal?: AbortSignal;
}

const ANSWER_MS = 15_000;

/**
 * Connects to QEMU's monitor. It serves one connection at a time.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the socket.
 *
 * @param path The socket.
 * @param options Where events go, and when to give up.
 * @returns The connection, ready for commands.
 * @throws {ToolsmithError} `boot_failed` when QEMU does not answer.
 * @throws {Deno.errors.NotFound} When there is no such socket.
 * @throws {Deno.errors.ConnectionRefused} When nobody listens on it.
 * @throws The signal's reason when it is aborted.
 */
export async function openQmp(
  path: string,
  options: OpenQmpOptions = {},
): Promise<Qmp> {
  const waiting = new Map<unknown, (message: Message) => void>();
  const greeted = Promise.withResolvers<Message>();
  let last = 0;
  const lines = await openLines(path, (message) => {
    if ("QMP" in message) return greeted.resolve(message);
    const event = readEvent(message);
    if (event) options.onEvent?.(event);
    else waiting.get(message.id)?.(message);
  });
  const within = <T>(answer: Promise<T>, what: string, signal?: AbortSignal) =>
    lines.within(answer, {
      ms: ANSWER_MS,
      late: () =>
        new ToolsmithError("boot_failed", `QEMU did not answer to ${what}`),
      signal,
    });
  const ask = async ([execute, args]: Command, signal?: AbortSignal) => {
    const id = ++last;
    const answer = Promise.withResolvers<Message>();
    waiting.set(id, answer.resolve);
    const asked = lines.write({ execute, arguments: args, id })
      .then(() => answer.promise);
    const message = await within(asked, execute, signal)
      .finally(() => waiting.delete(id));
    if ("error" in message) throw refused("QEMU", execute, message.error);
    return message.return;
  };
  try {
    const { signal } = options;
    const greeting = await within(greeted.promise, "the greeting", signal);
    const version = readVersion(greeting);
    await ask(["qmp_capabilities"], signal);
    return {
      version,
      closed: lines.closed,
      async send(...commands) {
        const asked = commands.map((command) => ask(command));
        // A refusal does not mean that the others may be cut off.
        await Promise.allSettled(asked);
        return await Promise.all(asked);
      },
      [Symbol.dispose]: lines.close,
    };
  } catch (error) {
    lines.close();
    throw error;
  }
}

function readEvent({ event, data }: Message): QmpEvent | undefined {
  if (typeof event !== "string") return undefined;
  return { event, data: isObject(data) ? data : undefined };
}

/** The greeting's version (qmp-spec, section "Server Greeting"). */
function readVersion({ QMP }: Message): string {
  const version = isObject(QMP) ? QMP.version : undefined;
  const qemu = isObject(version) ? version.qemu : undefined;
  const parts = isObject(qemu) ? [qemu.major, qemu.minor, qemu.micro] : [];
  if (parts.length === 0 || !parts.every(Number.isSafeInteger)) {
    throw new ToolsmithError(
      "boot_failed",
      "QEMU's monitor greets without a version",
    );
  }
  return parts.join(".");
}
