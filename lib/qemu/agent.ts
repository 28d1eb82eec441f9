/** Connection to the QEMU guest agent (QEMU, docs/interop/qemu-ga-ref). */
import { abortable, anySignal } from "../system/time.ts";
import type { JsonObject } from "../system/json.ts";
import { connectJsonLines, randomId } from "./_json_lines.ts";

export type AgentConnection = Awaited<ReturnType<typeof connectToAgent>>;

const AGENT_ANSWER_TIMEOUT_MS = 30_000;
const AGENT_SYNC_RETRY_MS = 2_000;
/** Makes the agent discard a truncated line from an earlier connection. */
const FLUSH_BYTE = new Uint8Array([0xff]);

/**
 * Connects to the guest agent's socket. Succeeds before the agent has started: wait
 * with {@linkcode AgentConnection.waitUntilAnswering}. Throws
 * {@linkcode VmDisconnectedError} when QEMU has ended.
 */
export async function connectToAgent(path: string) {
  let onUnsolicited: (message: JsonObject) => void = () => {};
  const lines = await connectJsonLines(path, {
    name: "The guest agent",
    answerTimeoutMs: AGENT_ANSWER_TIMEOUT_MS,
    timeoutErrorCode: "guest_failed",
    onUnsolicited: (message) => onUnsolicited(message),
  });
  return {
    execute: lines.execute,
    /** Repeats `guest-sync` until the agent answers, and drops stale answers. */
    async waitUntilAnswering(signal?: AbortSignal): Promise<void> {
      const ids: unknown[] = [];
      const answered = Promise.withResolvers<void>();
      onUnsolicited = (message) => {
        if (!ids.includes(message.return)) return;
        // Answers arrive in order: after the last one nothing is pending.
        if (message.return === ids.at(-1)) answered.resolve();
        // An agent that starts may lose what it has not read.
        clearInterval(timer);
        timer = setInterval(sync, AGENT_SYNC_RETRY_MS);
      };
      const sync = () => {
        const id = randomId();
        ids.push(id);
        const message = { execute: "guest-sync", arguments: { id } };
        // A lost connection is reported by `disconnectSignal` below.
        lines.writeMessage(message, FLUSH_BYTE).catch(() => {});
      };
      // QEMU buffers what is written before the agent opens its port.
      let timer = setInterval(sync, AGENT_SYNC_RETRY_MS);
      try {
        sync();
        const either = anySignal(lines.disconnectSignal, signal);
        await abortable(answered.promise, either);
      } finally {
        clearInterval(timer);
      }
    },
    [Symbol.asyncDispose]: lines[Symbol.asyncDispose],
  };
}
