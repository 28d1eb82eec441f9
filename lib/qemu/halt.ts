/**
 * Why QEMU has stopped a guest over its disk: as its event says it, and as it
 * says it to whoever asks afterwards.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { oneLine } from "../system/text.ts";
import { isObject } from "../system/json.ts";
import type { Command, QmpEvent } from "./qmp.ts";

/** What QEMU is asked. */
export const HALT_QUERIES: Command[] = [["query-status"], ["query-block"]];

/**
 * Reads an event of QEMU (QEMU's QMP reference, `BLOCK_IO_ERROR`).
 *
 * @param event The event.
 * @returns Why the guest stands still; `undefined` for any other event.
 */
export function haltOfEvent(
  { event, data = {} }: QmpEvent,
): ToolsmithError | undefined {
  if (event !== "BLOCK_IO_ERROR" || data.action !== "stop") return undefined;
  return data.nospace === true ? diskFull() : diskFailed(data.reason);
}

/**
 * Reads QEMU's answers (QEMU's QMP reference, `RunState`, `BlockInfo`).
 *
 * @param answers The answers to {@linkcode HALT_QUERIES}.
 * @returns Why the guest stands still; `undefined` if it does not, or not over
 * its disk.
 */
export function haltOfAnswers(
  [status, blocks]: unknown[],
): ToolsmithError | undefined {
  if (!isObject(status) || status.status !== "io-error") return undefined;
  const isFull = Array.isArray(blocks) &&
    blocks.some((it) => isObject(it) && it["io-status"] === "nospace");
  return isFull ? diskFull() : diskFailed("QEMU has stopped the guest");
}

function diskFull(): ToolsmithError {
  return new ToolsmithError(
    "disk_full",
    "There is no space left for what the guest writes to its disk",
    {
      hint:
        "free some; TMPDIR names the directory of temporary disks, with --no-save that of a first start, too",
    },
  );
}

function diskFailed(reason: unknown): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `The guest's disk failed: ${oneLine(String(reason))}`,
  );
}
