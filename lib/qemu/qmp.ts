/**
 * Connection to QEMU in the QEMU Machine Protocol (QEMU, docs/interop/qmp-spec).
 */
import { ToolsmithError } from "../errors.ts";
import { isJsonObject } from "../system/json.ts";
import {
  connectJsonLines,
  type JsonMessage,
  type QmpCommand,
} from "./_json_lines.ts";

export type { QmpCommand };

export interface QmpEvent {
  /** Such as `SHUTDOWN`. */
  event: string;
  data?: Record<string, unknown>;
}

export type QmpConnection = Awaited<ReturnType<typeof connectToQmp>>;

export interface ConnectToQmpOptions {
  onEvent?: (event: QmpEvent) => void;
  /** Ends the handshake when aborted. */
  signal?: AbortSignal;
}

const QMP_ANSWER_TIMEOUT_MS = 15_000;

/**
 * Connects to a QMP socket, which serves one connection at a time. Throws
 * `Deno.errors.NotFound` when there is no such socket, and
 * `Deno.errors.ConnectionRefused` when nobody listens on it.
 */
export async function connectToQmp(
  path: string,
  options: ConnectToQmpOptions = {},
) {
  const greeted = Promise.withResolvers<JsonMessage>();
  const lines = await connectJsonLines(path, {
    ...{ name: "QEMU", timeoutErrorCode: "boot_failed" },
    answerTimeoutMs: QMP_ANSWER_TIMEOUT_MS,
    onUnsolicited(message) {
      if ("QMP" in message) return greeted.resolve(message);
      const event = parseQmpEvent(message);
      if (event) options.onEvent?.(event);
    },
  });
  try {
    const { signal } = options;
    const what = "the QMP handshake";
    const greeting = await lines.waitForAnswer(greeted.promise, what, signal);
    const version = parseQemuVersion(greeting);
    await lines.execute(["qmp_capabilities"], signal);
    return {
      /** QEMU's version, such as `7.2.22`. */
      version,
      /** Settles when the connection has ended. Never rejects. */
      closed: lines.closed,
      /**
       * Sends commands at once and returns their answers in the same order. Throws
       * {@linkcode CommandRefusedError} for the first command that QEMU refused.
       */
      async execute(...commands: QmpCommand[]): Promise<unknown[]> {
        const answers = commands.map((command) => lines.execute(command));
        // Wait for all: a refusal must not cut off the other commands.
        await Promise.allSettled(answers);
        return await Promise.all(answers);
      },
      [Symbol.dispose]: lines[Symbol.dispose],
    };
  } catch (error) {
    lines[Symbol.dispose]();
    throw error;
  }
}

function parseQmpEvent({ event, data }: JsonMessage): QmpEvent | undefined {
  if (typeof event !== "string") return undefined;
  return { event, data: isJsonObject(data) ? data : undefined };
}

/** Reads the version in the greeting (qmp-spec, section "Server Greeting"). */
function parseQemuVersion({ QMP }: JsonMessage): string {
  const version = isJsonObject(QMP) ? QMP.version : undefined;
  const qemu = isJsonObject(version) ? version.qemu : undefined;
  const parts = isJsonObject(qemu) ? [qemu.major, qemu.minor, qemu.micro] : [];
  if (parts.length === 0 || !parts.every(Number.isSafeInteger)) {
    throw new ToolsmithError("boot_failed", "QEMU reports no version over QMP");
  }
  return parts.join(".");
}
