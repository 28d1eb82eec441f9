/**
 * Connection to QEMU in the QEMU Machine Protocol (QEMU, docs/interop/qmp-spec), and why
 * QEMU has stopped a guest: from its event, or from its answers to later queries.
 */
import { ToolsmithError } from "../errors.ts";
import { isJsonObject } from "../system/json.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import {
  connectJsonLines,
  type JsonMessage,
  type QmpCommand,
} from "./_json_lines.ts";

export type { QmpCommand };

export interface QmpEvent {
  event: string;
  data?: Record<string, unknown>;
}

export type QmpConnection = Awaited<ReturnType<typeof connectToQmp>>;

const QMP_ANSWER_TIMEOUT_MS = 15_000;

/**
 * Connects to a QMP socket, which serves one connection at a time. Throws
 * `Deno.errors.NotFound` when there is no such socket, and
 * `Deno.errors.ConnectionRefused` when nobody listens on it. The signal ends the
 * handshake.
 */
export async function connectToQmp(
  path: string,
  { onEvent, signal }: {
    onEvent?: (event: QmpEvent) => void;
    signal?: AbortSignal;
  } = {},
) {
  const greeted = Promise.withResolvers<JsonMessage>();
  const lines = await connectJsonLines(path, {
    ...{ name: "QEMU", timeoutErrorCode: "boot_failed" },
    answerTimeoutMs: QMP_ANSWER_TIMEOUT_MS,
    onUnsolicited(message) {
      if ("QMP" in message) return greeted.resolve(message);
      const event = parseQmpEvent(message);
      if (event) onEvent?.(event);
    },
  });
  try {
    const what = "the QMP handshake";
    const greeting = await lines.waitForAnswer(greeted.promise, what, signal);
    const version = parseQemuVersion(greeting);
    await lines.execute(["qmp_capabilities"], signal);
    return {
      /** QEMU's version, such as `7.2.22`. */
      version,
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
      [Symbol.asyncDispose]: lines[Symbol.asyncDispose],
    };
  } catch (error) {
    await lines[Symbol.asyncDispose]();
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

export const DISK_ERROR_QUERIES = [
  ["query-status"],
  ["query-block"],
] satisfies QmpCommand[];

/**
 * Returns why QEMU stopped the guest, from a QMP event (QEMU's QMP reference,
 * `BLOCK_IO_ERROR`); `undefined` for other events.
 */
export function diskErrorFromEvent(
  { event, data = {} }: QmpEvent,
): ToolsmithError | undefined {
  if (event !== "BLOCK_IO_ERROR" || data.action !== "stop") return undefined;
  return data.nospace === true ? diskFullError() : diskFailedError(data.reason);
}

/**
 * Returns why QEMU stopped the guest, from the answers to the queries (QEMU's QMP
 * reference, `RunState`, `BlockInfo`); `undefined` if not after a disk error.
 */
export function diskErrorFromStatus(
  [status, blocks]: unknown[],
): ToolsmithError | undefined {
  if (!isJsonObject(status) || status.status !== "io-error") return undefined;
  const isFull = Array.isArray(blocks) &&
    blocks.some((it) => isJsonObject(it) && it["io-status"] === "nospace");
  return isFull ? diskFullError() : diskFailedError("QEMU stopped the guest");
}

function diskFullError(): ToolsmithError {
  return new ToolsmithError(
    "disk_full",
    "There is no space left for the guest's disk writes",
    {
      hint:
        "free disk space or, without --overlay, set TMPDIR to a directory with more free space",
    },
  );
}

function diskFailedError(reason: unknown): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `The guest's disk failed: ${sanitizeLine(String(reason))}`,
  );
}
