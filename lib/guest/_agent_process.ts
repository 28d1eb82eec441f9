/**
 * Starts processes through the guest agent (docs/interop/qemu-ga-ref). Its answers
 * are untrusted: each field is checked before use.
 */
import { ToolsmithError } from "../errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { jsonObjectOrEmpty } from "../system/json.ts";
import { sleep } from "../system/time.ts";

export interface AgentProcessStatus {
  exited: boolean;
  /** Exit status; `undefined` if a signal ended the process. */
  exitCode?: number;
  stdout: string;
}

const GUEST_SHELL_PATH = "/bin/sh";
const MIN_STATUS_POLL_MS = 5;
const MAX_STATUS_POLL_MS = 100;

/**
 * Runs a short script to its end through the guest agent, without ports. `args` are the
 * script, `$0`, and arguments; `signal` stops waiting for an agent that never reports
 * the end.
 */
export async function runScriptViaAgent(
  monitor: Monitor,
  args: string[],
  { signal }: { signal?: AbortSignal },
): Promise<AgentProcessStatus> {
  const captured = { "capture-output": true };
  const pid = await startShellViaAgent(monitor, args, { signal, ...captured });
  // Half as much again, so that a short script is not waited for much longer.
  for (let pause = MIN_STATUS_POLL_MS;; pause *= 1.5) {
    await sleep(Math.min(pause, MAX_STATUS_POLL_MS), signal);
    const status = await queryProcessStatus(monitor, pid, signal);
    if (status.exited) return status;
  }
}

export async function startShellViaAgent(
  monitor: Monitor,
  args: string[],
  { signal, ...more }: { signal?: AbortSignal; "capture-output"?: boolean },
): Promise<number> {
  const command = { path: GUEST_SHELL_PATH, arg: ["-c", ...args], ...more };
  const answer = await monitor.agent(["guest-exec", command], signal);
  const { pid } = jsonObjectOrEmpty(answer);
  if (typeof pid === "number" && Number.isSafeInteger(pid)) return pid;
  throw malformedAnswerError("guest-exec", "pid");
}

export async function queryProcessStatus(
  monitor: Monitor,
  pid: number,
  signal?: AbortSignal,
): Promise<AgentProcessStatus> {
  const command = "guest-exec-status";
  const answer = await monitor.agent([command, { pid }], signal);
  const { exited, exitcode, "out-data": data = "" } = jsonObjectOrEmpty(answer);
  if (typeof exited !== "boolean") {
    throw malformedAnswerError(command, "exited");
  }
  if (exitcode !== undefined && typeof exitcode !== "number") {
    throw malformedAnswerError(command, "exitcode");
  }
  try {
    // Throws for a value that is no string, too.
    const bytes = Uint8Array.fromBase64(data as string);
    const stdout = new TextDecoder().decode(bytes);
    return { exited, exitCode: exitcode, stdout };
  } catch {
    throw malformedAnswerError(command, "out-data");
  }
}

function malformedAnswerError(command: string, field: string): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `Malformed answer from the guest agent to ${command}: no valid ${field}`,
    { hint: "use an image with an unmodified QEMU guest agent" },
  );
}
