/**
 * Reads the guest agent's answers (docs/interop/qemu-ga-ref). They are the
 * guest's: each field is checked before it is used.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";

/** The answer to `guest-exec-status`. */
export interface ProcessStatus {
  /** Has the process ended? */
  exited: boolean;
  /** Its exit status, if it exited by itself. */
  exitCode?: number;
  /** What it wrote to standard output, where that was captured. */
  output: string;
}

/**
 * Reads the answer to `guest-exec`.
 *
 * @param answer What the agent returned.
 * @returns The process, as the agent knows it.
 * @throws {ToolsmithError} `guest_failed` for anything else.
 */
export function readPid(answer: unknown): number {
  const { pid } = fieldsOf(answer);
  if (typeof pid !== "number" || !Number.isSafeInteger(pid)) {
    throw malformed("guest-exec", "pid");
  }
  return pid;
}

/**
 * Reads the answer to `guest-exec-status`.
 *
 * @param answer What the agent returned.
 * @returns How it is with the process.
 * @throws {ToolsmithError} `guest_failed` for anything else.
 */
export function readStatus(answer: unknown): ProcessStatus {
  const { exited, exitcode, "out-data": data = "" } = fieldsOf(answer);
  if (typeof exited !== "boolean") throw malformed(STATUS, "exited");
  if (exitcode !== undefined && typeof exitcode !== "number") {
    throw malformed(STATUS, "exitcode");
  }
  if (typeof data !== "string") throw malformed(STATUS, "out-data");
  return { exited, exitCode: exitcode, output: decode(data) };
}

const STATUS = "guest-exec-status";

function fieldsOf(answer: unknown): Record<string, unknown> {
  return typeof answer === "object" && answer !== null
    ? answer as Record<string, unknown>
    : {};
}

function decode(base64: string): string {
  try {
    const bytes = Uint8Array.from(atob(base64), (it) => it.charCodeAt(0));
    return new TextDecoder().decode(bytes);
  } catch {
    throw malformed(STATUS, "out-data");
  }
}

function malformed(command: string, field: string): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `The guest agent's answer to ${command} has no valid ${field}`,
    { hint: "the image needs the QEMU guest agent as it is published" },
  );
}
