/**
 * Connection to QEMU in the QEMU Machine Protocol (QEMU, docs/interop/qmp-spec), and why
 * QEMU has stopped a guest: from its event, or from its answers to later queries.
 */
import { ToolsmithError } from "../errors.ts";
import { type JsonObject, jsonObjectOrEmpty } from "../system/json.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { connectJsonLines, type QmpCommand } from "./_json_lines.ts";

export type { QmpCommand };

export interface QmpEvent {
  event: string;
  data: Record<string, unknown>;
}

export type QmpConnection = Awaited<ReturnType<typeof connectToQmp>>;

const QMP_ANSWER_TIMEOUT_MS = 15_000;

/**
 * Connects to a QMP socket, which serves one connection at a time. Throws
 * {@linkcode VmDisconnectedError} when nobody listens there, and `Deno.errors.NotFound`
 * when there is no such socket. The signal ends the handshake.
 */
export async function connectToQmp(
  path: string,
  { onEvent, signal }: {
    onEvent?: (event: QmpEvent) => void;
    signal?: AbortSignal;
  } = {},
) {
  const greeted = Promise.withResolvers<JsonObject>();
  const lines = await connectJsonLines(path, {
    name: "QEMU",
    answerTimeoutMs: QMP_ANSWER_TIMEOUT_MS,
    timeoutErrorCode: "boot_failed",
    onUnsolicited({ QMP, event, data }) {
      if (QMP !== undefined) greeted.resolve(jsonObjectOrEmpty(QMP));
      if (typeof event !== "string") return;
      onEvent?.({ event, data: jsonObjectOrEmpty(data) });
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

/** Reads the version in the greeting (qmp-spec, section "Server Greeting"). */
function parseQemuVersion(greeting: JsonObject): string {
  const { qemu } = jsonObjectOrEmpty(greeting.version);
  const { major, minor, micro } = jsonObjectOrEmpty(qemu);
  const version = [major, minor, micro];
  if (version.every(Number.isSafeInteger)) return version.join(".");
  throw new ToolsmithError("boot_failed", "QEMU reports no version over QMP");
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
  { event, data }: QmpEvent,
): ToolsmithError | undefined {
  if (event !== "BLOCK_IO_ERROR" || data.action !== "stop") return undefined;
  return diskError(data.reason, { isFull: data.nospace === true });
}

/**
 * Returns why QEMU stopped the guest, from the answers to the queries (QEMU's QMP
 * reference, `RunState`, `BlockInfo`); `undefined` if not after a disk error.
 */
export function diskErrorFromStatus(
  [status, blocks]: unknown[],
): ToolsmithError | undefined {
  if (jsonObjectOrEmpty(status).status !== "io-error") return undefined;
  const isFull = Array.isArray(blocks) &&
    blocks.some((it) => jsonObjectOrEmpty(it)["io-status"] === "nospace");
  return diskError("QEMU stopped the guest", { isFull });
}

function diskError(
  reason: unknown,
  { isFull }: { isFull: boolean },
): ToolsmithError {
  if (!isFull) {
    const message = `The guest's disk failed: ${sanitizeLine(String(reason))}`;
    return new ToolsmithError("guest_failed", message);
  }
  const message = "There is no space left for the guest's disk writes";
  const hint =
    "free disk space or, without --overlay, set TMPDIR to a directory with more free space";
  return new ToolsmithError("disk_full", message, { hint });
}
