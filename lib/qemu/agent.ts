/**
 * Speaks to the guest agent, in the protocol of QEMU's guest agent
 * (docs/interop/qemu-ga-ref).
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { abortable } from "../system/time.ts";
import {
  type Command,
  type Message,
  openLines,
  refused,
} from "./_json_lines.ts";

/** A connection to the guest agent. */
export interface Agent extends Disposable {
  /** Settles when the connection has ended. Never rejects. */
  readonly closed: Promise<void>;
  /** Asks until the agent answers, then drops what it said before. */
  sync(signal?: AbortSignal): Promise<void>;
  /** Sends a command and returns its answer, which may be anything. */
  send(command: Command, options?: AgentSendOptions): Promise<unknown>;
}

/** How long {@linkcode Agent.send} waits. */
export interface AgentSendOptions {
  /** Time that the answer may take, in milliseconds. @default {30_000} */
  timeoutMs?: number;
  /** Ends the wait when aborted. */
  signal?: AbortSignal;
}

const ANSWER_MS = 30_000;
const ASK_AGAIN_MS = 2_000;
/** Makes the agent forget half a line that somebody else left. */
const FLUSH = new Uint8Array([0xff]);

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
      const asked: unknown[] = [];
      const answered = Promise.withResolvers<void>();
      take = (message) => {
        if (!asked.includes(message.return)) return;
        clearInterval(timer);
        // Answers keep their order: after the last one nothing is pending.
        if (message.return === asked.at(-1)) answered.resolve();
      };
      const ask = () => {
        const id = newId();
        asked.push(id);
        // What ends the connection is noticed below.
        lines.write({ execute: "guest-sync", arguments: { id } }, FLUSH)
          .catch(() => {});
      };
      // What is written before the agent is there waits for it in QEMU.
      const timer = setInterval(ask, ASK_AGAIN_MS);
      try {
        ask();
        const signals = [lines.ended, ...signal ? [signal] : []];
        await abortable(answered.promise, AbortSignal.any(signals));
      } finally {
        clearInterval(timer);
      }
    },
    async send([execute, args], { timeoutMs = ANSWER_MS, signal } = {}) {
      const answer = Promise.withResolvers<Message>();
      const id = newId();
      take = (message) => {
        // An older agent does not repeat the id; another's answer has another.
        if (message.id === undefined || message.id === id) {
          answer.resolve(message);
        }
      };
      // A guest that reads nothing would hold the write, too.
      const asked = lines.write({ execute, arguments: args, id })
        .then(() => answer.promise);
      const message = await lines.within(asked, {
        ms: timeoutMs,
        late: () =>
          new ToolsmithError(
            "guest_failed",
            `The guest agent did not answer to ${execute}`,
          ),
        signal,
      });
      if ("error" in message) {
        throw refused("The guest agent", execute, message.error);
      }
      return message.return;
    },
    [Symbol.dispose]: lines.close,
  };
}

function newId(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
