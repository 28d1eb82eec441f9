/**
 * Speaks to the guest agent, in the protocol of QEMU's guest agent
 * (docs/interop/qemu-ga-ref).
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
import { VmDisconnectedError } from "./errors.ts";

/** A connection to the guest agent. */
export interface Agent extends Disposable {
  /** Settles when the connection has ended. Never rejects. */
  readonly closed: Promise<void>;
  /** Asks until the agent answers, then drops what it said before. */
  sync(signal?: AbortSignal): Promise<void>;
  /** Sends a command and returns its answer. */
  send(command: Command, timeoutMs?: number): Promise<unknown>;
}

const AGENT_TIMEOUT_MS = 30_000;
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
        if (lines.isClosed()) throw new VmDisconnectedError();
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
