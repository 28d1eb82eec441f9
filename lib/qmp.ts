/**
 * Speaks JSON, one object a line, over a Unix socket: to QEMU's monitor (QMP)
 * and to the guest agent.
 *
 * @module
 */
import { ToolsmithError } from "./errors.ts";

/** A command of the monitor or the agent, and its arguments. */
export type Command = [name: string, args?: Record<string, unknown>];

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

/** A connection to the guest agent. */
export interface Agent extends Disposable {
  /** Settles when the connection has ended. Never rejects. */
  readonly closed: Promise<void>;
  /** Asks until the agent answers, then drops what it said before. */
  sync(signal?: AbortSignal): Promise<void>;
  /** Sends a command and returns its answer. */
  send(command: Command, timeoutMs?: number): Promise<unknown>;
}

/** The machine ended, or broke off, while something was asked of it. */
export class MachineGone extends ToolsmithError {
  constructor() {
    super("guest_failed", "The machine broke off");
  }
}

interface Message extends Record<string, unknown> {
  return?: unknown;
  error?: { class?: string; desc?: string };
}

const QMP_TIMEOUT_MS = 15_000;
const AGENT_TIMEOUT_MS = 30_000;
const ASK_AGAIN_MS = 2_000;
const MAX_LINE = 4 * 1024 * 1024;
/** Makes the agent forget half a line that somebody else left. */
const FLUSH = new Uint8Array([0xff]);

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

/**
 * Connects to the socket of the guest agent. Whether the agent is there is not
 * known before {@linkcode Agent.sync} has settled.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the socket.
 *
 * @param path The socket.
 * @returns The connection.
 * @throws {Deno.errors.ConnectionRefused} When QEMU has ended.
 */
export async function openAgent(path: string): Promise<Agent> {
  let take: (message: Message) => void = () => {};
  const lines = await openLines(path, (message) => take(message));
  return {
    closed: lines.closed,
    async sync(signal) {
      const asked: number[] = [];
      const answered = Promise.withResolvers<void>();
      take = (message) => {
        if (!asked.includes(message.return as number)) return;
        clearInterval(timer);
        // Answers keep their order: after the last one nothing is pending.
        if (message.return === asked.at(-1)) answered.resolve();
      };
      const aborted = () => answered.reject(signal?.reason);
      signal?.addEventListener("abort", aborted, { once: true });
      const ask = async () => {
        const id = crypto.getRandomValues(new Uint32Array(1))[0];
        asked.push(id);
        await lines.write({ execute: "guest-sync", arguments: { id } }, FLUSH);
      };
      // What is written before the agent is there waits for it in QEMU.
      const timer = setInterval(() => ask().catch(() => {}), ASK_AGAIN_MS);
      try {
        signal?.throwIfAborted();
        await ask();
        await Promise.race([answered.promise, lines.closed]);
        if (lines.isClosed()) throw new MachineGone();
      } finally {
        clearInterval(timer);
        signal?.removeEventListener("abort", aborted);
      }
    },
    async send([execute, args], timeoutMs = AGENT_TIMEOUT_MS) {
      const answer = Promise.withResolvers<Message>();
      const id = crypto.getRandomValues(new Uint32Array(1))[0];
      take = (message) => {
        // An older agent does not repeat the id; another's answer has another.
        if (message.id === undefined || message.id === id) {
          answer.resolve(message);
        }
      };
      await lines.write({ execute, arguments: args, id });
      const message = await lines.within(
        timeoutMs,
        answer.promise,
        () =>
          new ToolsmithError(
            "guest_failed",
            `The guest agent did not answer to ${execute}`,
          ),
      );
      if (message.error) throw refused("The guest agent", execute, message);
      return message.return;
    },
    [Symbol.dispose]: lines.close,
  };
}

/** One object a line, in both directions. */
async function openLines(path: string, onMessage: (message: Message) => void) {
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
        for (let done = 0; done < bytes.length;) {
          done += await connection.write(bytes.subarray(done));
        }
      });
      writing = written.catch(() => {});
      return written.catch((cause) => {
        // The end may be noticed here before it is read.
        const gone = !open || cause instanceof Deno.errors.BrokenPipe ||
          cause instanceof Deno.errors.ConnectionReset;
        throw gone ? new MachineGone() : cause;
      });
    },
    /** An answer, unless the connection ends or the time is over before. */
    within<T>(ms: number, answer: Promise<T>, late: () => Error): Promise<T> {
      const { promise, resolve, reject } = Promise.withResolvers<T>();
      const timer = setTimeout(() => reject(late()), ms);
      const gone = () => reject(new MachineGone());
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

function refused(who: string, what: string, message: Message): ToolsmithError {
  const desc = message.error?.desc ?? "without a reason";
  return new ToolsmithError("guest_failed", `${who} refused ${what}: ${desc}`);
}
