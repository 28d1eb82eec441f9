/** Watches a guest until it is ready, and explains why a guest is not. */
import { join } from "../path.ts";
import { type ErrorCode, ToolsmithError } from "../errors.ts";
import { type AgentConnection, connectToAgent } from "../qemu/agent.ts";
import { AcceleratorError, VmDisconnectedError } from "../qemu/errors.ts";
import type { QemuProcess } from "../qemu/qemu_process.ts";
import { VM_FILES } from "../qemu/vm_dir.ts";
import { abortable, anySignal, sleep } from "../system/time.ts";
import type { BootOptions } from "./boot_options.ts";

/** Longest time without activity, and in total: a guest may print endlessly. */
const BOOT_LIMITS = { idleMs: 120_000, totalMs: 1_800_000 };
/** A restored guest answers at once or never, but many that start at once are slow. */
const RESTORE_LIMITS = { idleMs: 60_000, totalMs: 300_000 };
/** A user at the console sees the progress and can end the guest there. */
const CONSOLE_BOOT_TIMEOUT_MS = 120_000;
const FAILURE_POLL_MS = 100;
const ACTIVITY_POLL_MS = 5000;

/**
 * Watches a guest until disposed. The signal aborts with the caller's reason, or with the
 * error of a guest that has failed or is late: a slow guest is waited for, one that
 * prints nothing and reads nothing is not. The error is an {@linkcode AcceleratorError}
 * when the accelerator does not work.
 */
export function watchGuest(
  qemu: QemuProcess,
  how: "boot" | "restore",
  options: Omit<BootOptions, "image">,
) {
  const [failed, disposed] = [new AbortController(), new AbortController()];
  const fail = (error: unknown) => failed.abort(error);
  const signal = anySignal(options.signal, failed.signal);
  let hasAnswered = false;
  let hasEnded = false;
  qemu.ended.then(() => hasEnded = true);
  qemu.haltingDiskError.then(fail);

  async function pollForFailure() {
    while (!hasAnswered) {
      if (qemu.isGuestStopped()) await throwIfCrashed(qemu);
      if (hasEnded || qemu.consoleFailure()) throw await bootFailureError(qemu);
      await sleep(FAILURE_POLL_MS, disposed.signal);
    }
  }

  async function pollForActivity() {
    const { idleMs, totalMs } = timeLimits(how, options);
    const begun = performance.now();
    let [activeAt, activity, bytesRead] = [begun, "", 0];
    while (true) {
      const end = Math.min(begun + totalMs, activeAt + idleMs);
      const left = end - performance.now();
      if (left <= 0) break;
      await sleep(Math.min(left, ACTIVITY_POLL_MS), disposed.signal);
      bytesRead = await queryDiskBytesRead(qemu).catch(() => bytesRead);
      const before = activity;
      const printed = qemu.consoleByteCount();
      activity = `${printed} ${qemu.agentHasConnected()} ${bytesRead}`;
      if (activity !== before) activeAt = performance.now();
    }
    const waitedMs = performance.now() - begun;
    const isIdle = waitedMs < totalMs;
    const idle = isIdle ? `, then did nothing for ${idleMs / 1000} s` : "";
    const mib = (bytesRead / 2 ** 20).toFixed(1);
    throw guestNotReadyError(qemu, hasAnswered, {
      seconds: Math.round((isIdle ? waitedMs : totalMs) / 10) / 100,
      activity: `the guest read ${mib} MiB of its disk${idle}`,
    });
  }

  const polls = [pollForFailure().catch(fail), pollForActivity().catch(fail)];
  return {
    signal,
    /** Waits until the guest agent answers. */
    async connectToAgent(): Promise<AgentConnection> {
      const agent = await connectToAgent(join(qemu.dir, VM_FILES.agent));
      try {
        await agent.waitUntilAnswering(signal);
        hasAnswered = true;
        return agent;
      } catch (error) {
        await agent[Symbol.asyncDispose]();
        // The signal soon aborts with the reason why the VM has ended.
        if (!(error instanceof VmDisconnectedError)) throw error;
        return await abortable(new Promise<never>(() => {}), signal);
      }
    },
    async [Symbol.asyncDispose]() {
      disposed.abort();
      await Promise.all(polls);
    },
  };
}

function timeLimits(
  how: "boot" | "restore",
  { agentOptional, bootTimeoutMs }: Omit<BootOptions, "image">,
) {
  if (how === "restore") {
    const { idleMs, totalMs } = RESTORE_LIMITS;
    return { idleMs, totalMs: Math.min(bootTimeoutMs ?? Infinity, totalMs) };
  }
  const usualMs = agentOptional ? CONSOLE_BOOT_TIMEOUT_MS : undefined;
  const totalMs = bootTimeoutMs ?? usualMs;
  return totalMs === undefined ? BOOT_LIMITS : { idleMs: Infinity, totalMs };
}

/** Bytes that the guest has read from its disks (QEMU's QMP reference, BlockStats). */
async function queryDiskBytesRead({ qmp }: QemuProcess): Promise<number> {
  const [answer] = await qmp.execute(["query-blockstats"]);
  return (answer as { stats: { rd_bytes: number } }[])
    .reduce((sum, { stats }) => sum + stats.rd_bytes, 0);
}

/** QEMU stops a guest whose accelerator fails. */
async function throwIfCrashed(qemu: QemuProcess) {
  const answers = qemu.qmp.execute(["query-status"]);
  const [answer] = await answers.catch(() => [{}]);
  const { status } = answer as { status?: string };
  if (status !== "internal-error") return;
  const reason = qemu.stderrTail().split("; ")[0];
  if (qemu.plan.accelerator !== "tcg") throw new AcceleratorError(reason);
  const message = `QEMU stopped the guest: ${reason}`;
  throw errorWithConsoleTail(qemu, "boot_failed", message);
}

/** Explains why a VM has ended, or why its guest cannot boot. */
export async function bootFailureError(qemu: QemuProcess): Promise<Error> {
  const shown = qemu.consoleFailure();
  if (shown) {
    return errorWithConsoleTail(qemu, shown.code, shown.message, shown.hint);
  }
  const { code } = await qemu.ended;
  const stderrTail = qemu.stderrTail();
  // Printed by GLib's g_malloc when out of memory.
  if (/failed to allocate \d+ bytes/.test(stderrTail)) {
    return new ToolsmithError(
      "guest_failed",
      `The guest made QEMU exceed its memory limit: ${stderrTail}`,
      { hint: "see docs/running.md for the memory limit and what uses memory" },
    );
  }
  if (code >= 128 && qemu.plan.accelerator !== "tcg") {
    return new AcceleratorError(stderrTail);
  }
  const message = code === 0
    ? "The guest powered off or rebooted"
    : `QEMU exited with status ${code}: ${stderrTail || "no error output"}`;
  return errorWithConsoleTail(qemu, "boot_failed", message);
}

/** Explains what a guest has not done in time, with its console's tail. */
export function guestNotReadyError(
  qemu: QemuProcess,
  hasAnswered: boolean,
  { seconds, activity }: { seconds: number; activity: string },
): ToolsmithError {
  const within = `within ${seconds} s`;
  let problem = `The guest's cloud-init did not finish ${within}`;
  let hint =
    "allow more time with --boot-timeout, or watch the guest's console: toolsmith boot";
  if (!hasAnswered && qemu.agentHasConnected()) {
    problem = `The guest agent started but did not answer ${within}`;
  } else if (!hasAnswered) {
    problem =
      `The guest agent did not start ${within}, and neither did Toolsmith's own agent`;
    hint =
      "install qemu-guest-agent or cloud-init in the image, or allow a slow guest more time with --boot-timeout";
  }
  const message = `${problem}; ${activity}`;
  return errorWithConsoleTail(qemu, "guest_not_ready", message, hint);
}

function errorWithConsoleTail(
  qemu: QemuProcess,
  code: ErrorCode,
  message: string,
  hint?: string,
): ToolsmithError {
  const tail = qemu.consoleTail();
  const shown = tail
    ? `its console ends with:\n${tail.replace(/^/gm, "  | ")}`
    : "its console is empty";
  const stderr = qemu.stderrTail();
  const cause = stderr ? new Error(`QEMU: ${stderr}`) : undefined;
  return new ToolsmithError(code, `${message}; ${shown}`, { hint, cause });
}
