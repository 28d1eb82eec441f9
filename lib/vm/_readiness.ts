/** Waits for the guest agent, and explains why a guest is not ready. */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { AcceleratorError } from "../qemu/errors.ts";
import type { QemuProcess } from "../qemu/qemu_process.ts";
import { VM_FILES } from "../qemu/vm_dir.ts";
import { settlesWithin } from "../system/time.ts";
import { type AgentConnection, connectToAgent } from "../qemu/agent.ts";
import type { BootTimeoutError } from "./_boot_progress.ts";

const AGENT_POLL_MS = 100;

/**
 * Waits until the guest agent answers. Detects a failed guest before the timeout, and
 * reports it with the console's tail. Throws {@linkcode AcceleratorError} when the
 * accelerator does not work.
 */
export async function waitForAgent(
  qemu: QemuProcess,
  signal?: AbortSignal,
): Promise<AgentConnection> {
  const agent = await connectToAgent(join(qemu.dir, VM_FILES.agent));
  const stop = new AbortController();
  const answered = agent.waitUntilAnswering(stop.signal).then(() => true);
  answered.catch(() => {});
  let hasEnded = false;
  qemu.ended.then(() => hasEnded = true);
  try {
    while (true) {
      if (await answersSoon(answered, AGENT_POLL_MS)) return agent;
      signal?.throwIfAborted();
      if (qemu.isGuestStopped()) await throwIfStoppedByQemu(qemu);
      const consoleFailure = qemu.consoleFailure();
      if (hasEnded || consoleFailure) throw await bootFailureError(qemu);
    }
  } catch (error) {
    stop.abort();
    await agent[Symbol.asyncDispose]();
    throw error;
  }
}

/** Explains why a VM has ended, or why its guest cannot boot. */
export async function bootFailureError(qemu: QemuProcess): Promise<Error> {
  const consoleFailure = qemu.consoleFailure();
  if (consoleFailure?.kind === "panicked") {
    return errorWithConsoleTail(
      qemu,
      "guest_panicked",
      `The guest's kernel panicked: ${consoleFailure.message}`,
    );
  }
  if (consoleFailure?.kind === "not_bootable") {
    return errorWithConsoleTail(
      qemu,
      "boot_failed",
      `The image does not boot: ${consoleFailure.message}`,
      "check that the image has a boot loader; choose its firmware with --firmware and its processor with --arch (see docs/running.md)",
    );
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
  return errorWithConsoleTail(
    qemu,
    "boot_failed",
    code === 0
      ? "The guest powered off or rebooted"
      : `QEMU exited with status ${code}: ${stderrTail || "no error output"}`,
  );
}

/** QEMU stops a guest after an accelerator failure or a disk error. */
async function throwIfStoppedByQemu(qemu: QemuProcess) {
  const answers = qemu.qmp.execute(["query-status"]);
  const [answer] = await answers.catch(() => [{}]);
  const { status } = answer as { status?: string };
  if (status === "io-error") throw await qemu.haltingDiskError;
  if (status !== "internal-error") return;
  const reason = qemu.stderrTail().split("; ")[0];
  if (qemu.plan.accelerator !== "tcg") throw new AcceleratorError(reason);
  const message = `QEMU stopped the guest: ${reason}`;
  throw errorWithConsoleTail(qemu, "boot_failed", message);
}

/** Explains what a guest has not done in time, with its console's tail. */
export function guestNotReadyError(
  qemu: QemuProcess,
  { seconds, guestActivity }: BootTimeoutError,
  what?: "cloud-init",
): ToolsmithError {
  const within = `within ${seconds} s`;
  if (!what && !qemu.agentHasConnected()) {
    return errorWithConsoleTail(
      qemu,
      "guest_not_ready",
      `The guest agent did not start ${within}, and neither did Toolsmith's own agent; ${guestActivity}`,
      "install qemu-guest-agent or cloud-init in the image, or allow a slow guest more time with --boot-timeout",
    );
  }
  return errorWithConsoleTail(
    qemu,
    "guest_not_ready",
    what
      ? `The guest's ${what} did not finish ${within}; ${guestActivity}`
      : `The guest agent started but did not answer ${within}; ${guestActivity}`,
    "allow more time with --boot-timeout, or watch the guest's console: toolsmith boot",
  );
}

function errorWithConsoleTail(
  qemu: QemuProcess,
  code: "guest_panicked" | "boot_failed" | "guest_not_ready",
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

/** Ignores a lost connection: the caller sees why the VM has ended. */
function answersSoon(answered: Promise<boolean>, ms: number): Promise<boolean> {
  const answer = new Promise<void>((done) => answered.then(() => done(), noop));
  return settlesWithin(answer, ms);
}

function noop() {}
