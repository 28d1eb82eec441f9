/**
 * Speaks to QEMU's monitor, in the QEMU Machine Protocol
 * (docs/interop/qmp-spec).
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import {
  type Command,
  type Message,
  openLines,
  refused,
} from "./_json_lines.ts";

export type { Command };

/** Something that QEMU tells without being asked. */
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
  /** Sends commands at once; answers in their order, or the first refusal. */
  send(...commands: Command[]): Promise<unknown[]>;
}

const QMP_TIMEOUT_MS = 15_000;

/**
 * Connects to QEMU's monitor. It serves one connection at a time.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the socket.
 *
 * @param path The socket.
 * @param onEvent Told of QEMU's events.
 * @returns The connection, ready for commands.
 * @throws {ToolsmithError} `boot_failed` when QEMU does not answer.
 * @throws {Deno.errors.NotFound} When there is no such socket.
 * @throws {Deno.errors.ConnectionRefused} When nobody listens on it.
 */
export async function openQmp(
  path: string,
  onEvent: (event: QmpEvent) => void = () => {},
): Promise<Qmp> {
  const waiting = new Map<number, (message: Message) => void>();
  const greeted = Promise.withResolvers<Message>();
  let last = 0;
  const lines = await openLines(path, (message) => {
    if ("QMP" in message) greeted.resolve(message);
    else if ("event" in message) onEvent(message as unknown as QmpEvent);
    else waiting.get(message.id as number)?.(message);
  });
  const ask = async ([execute, args]: Command): Promise<unknown> => {
    const id = ++last;
    const answer = Promise.withResolvers<Message>();
    waiting.set(id, answer.resolve);
    await lines.write({ execute, arguments: args, id });
    const message = await within(answer.promise, execute).finally(() =>
      waiting.delete(id)
    );
    if (message.error) throw refused("QEMU", execute, message);
    return message.return;
  };
  const within = (answer: Promise<Message>, what: string) =>
    lines.within(
      QMP_TIMEOUT_MS,
      answer,
      () => new ToolsmithError("boot_failed", `QEMU did not answer to ${what}`),
    );
  try {
    const greeting = await within(greeted.promise, "the greeting");
    const { qemu } = (greeting.QMP as { version: { qemu: Version } }).version;
    await ask(["qmp_capabilities"]);
    return {
      version: `${qemu.major}.${qemu.minor}.${qemu.micro}`,
      closed: lines.closed,
      send: (...commands) => Promise.all(commands.map(ask)),
      [Symbol.dispose]: lines.close,
    };
  } catch (error) {
    lines.close();
    throw error;
  }
}

interface Version {
  major: number;
  minor: number;
  micro: number;
}
