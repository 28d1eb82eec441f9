/**
 * Why QEMU has stopped a guest after a disk error: from QEMU's event, or from its
 * answers to later queries.
 */
import { ToolsmithError } from "../errors.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { isJsonObject } from "../system/json.ts";
import type { QmpCommand, QmpEvent } from "./qmp.ts";

/** Commands whose answers {@linkcode diskErrorFromStatus} reads. */
export const DISK_ERROR_QUERIES: QmpCommand[] = [["query-status"], [
  "query-block",
]];

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
