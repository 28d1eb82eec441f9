/**
 * Waits until a guest answers, and says why it does not.
 *
 * @module
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { AcceleratorError } from "../qemu/errors.ts";
import type { Machine } from "../qemu/machine.ts";
import { MACHINE_FILES } from "../qemu/machine_dir.ts";
import { settlesWithin } from "../system/time.ts";
import { type Agent, openAgent } from "../qemu/agent.ts";
import type { NoProgress } from "./_progress.ts";

/** What {@linkcode whenReady} takes. */
export interface WhenReadyOptions {
  /** The machine's directory. */
  dir: string;
  /** Ends the wait when aborted. */
  signal?: AbortSignal;
}

const LOOK_MS = 100;

/**
 * Waits until the guest agent answers. A guest that has failed for good is
 * noticed before the time is over.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the directory.
 *
 * @param machine The machine; its processor runs.
 * @param options The directory, and what ends the wait.
 * @returns The connection to the agent.
 * @throws {ToolsmithError} `guest_panicked`, `boot_failed`, each with the end of the
 * serial console.
 * @throws {AcceleratorError} When QEMU cannot run the guest in this way.
 * @throws The signal's reason when it is aborted.
 */
export async function whenReady(
  machine: Machine,
  options: WhenReadyOptions,
): Promise<Agent> {
  const { dir, signal } = options;
  const agent = await openAgent(join(dir, MACHINE_FILES.agent));
  const stop = new AbortController();
  const answered = agent.sync(stop.signal).then(() => true);
  answered.catch(() => {});
  let over = false;
  machine.ended.then(() => over = true);
  try {
    while (true) {
      if (await soon(answered, LOOK_MS)) return agent;
      signal?.throwIfAborted();
      if (machine.stopped()) await checkStop(machine);
      const consoleFailure = machine.consoleFailure();
      if (over || consoleFailure) throw await bootFailure(machine);
    }
  } catch (error) {
    stop.abort();
    agent[Symbol.dispose]();
    await agent.closed;
    throw error;
  }
}

/**
 * Says why a machine that has ended, or should end, is of no use any more.
 *
 * @param machine The machine.
 * @returns The error, with the end of the serial console.
 */
export async function bootFailure(machine: Machine): Promise<Error> {
  const consoleFailure = machine.consoleFailure();
  if (consoleFailure?.kind === "panicked") {
    return withTail(
      machine,
      "guest_panicked",
      `The guest's kernel panicked: ${consoleFailure.words}`,
    );
  }
  if (consoleFailure?.kind === "not_bootable") {
    return withTail(
      machine,
      "boot_failed",
      `The image does not boot: ${consoleFailure.words}`,
      "it needs a boot loader for BIOS or UEFI: --firmware says which, --arch for which processor; docs/running.md has more",
    );
  }
  const { code } = await machine.ended;
  const stderrTail = machine.stderrTail();
  // What GLib says where there is no memory (g_malloc).
  if (/failed to allocate \d+ bytes/.test(stderrTail)) {
    return new ToolsmithError(
      "guest_failed",
      `The guest made QEMU need more memory than it may have: ${stderrTail}`,
      { hint: "docs/running.md says how much that is, and what takes it" },
    );
  }
  if (code >= 128 && machine.accelerator !== "tcg") {
    return new AcceleratorError(stderrTail);
  }
  return withTail(
    machine,
    "boot_failed",
    code === 0
      ? "The guest ended or restarted by itself"
      : `QEMU ended with status ${code}: ${stderrTail || "without a word"}`,
  );
}

/** QEMU stops a guest that its accelerator cannot go on with. */
async function checkStop(machine: Machine) {
  const [answer] = await machine.qmp.send(["query-status"]).catch(() => [{}]);
  const { status } = answer as { status?: string };
  if (status === "io-error") throw await machine.halted;
  if (status !== "internal-error") return;
  const first = machine.stderrTail().split("; ")[0];
  if (machine.accelerator !== "tcg") throw new AcceleratorError(first);
  throw withTail(machine, "boot_failed", `QEMU stopped the guest: ${first}`);
}

/**
 * Says why a guest is not waited for any longer, with the end of its console.
 *
 * @param machine The machine.
 * @param late What it did.
 * @param what What it was waited for; `undefined` for the agent.
 */
export function notReady(
  machine: Machine,
  { seconds, done }: NoProgress,
  what?: "cloud-init",
): ToolsmithError {
  const within = `within ${seconds} s`;
  if (!what && !machine.agentSeen()) {
    return withTail(
      machine,
      "guest_not_ready",
      `The guest agent did not start ${within}, nor did the image take the one that Toolsmith offers; ${done}`,
      "the image needs qemu-guest-agent, started at boot, or cloud-init, which starts Toolsmith's; a slow guest needs --boot-timeout",
    );
  }
  return withTail(
    machine,
    "guest_not_ready",
    what
      ? `The guest's ${what} did not end ${within}; ${done}`
      : `The guest agent is there and did not answer ${within}; ${done}`,
    "allow more time with --boot-timeout, or look at the guest: toolsmith boot",
  );
}

function withTail(
  machine: Machine,
  code: "guest_panicked" | "boot_failed" | "guest_not_ready",
  message: string,
  hint?: string,
): ToolsmithError {
  const tail = machine.tail();
  const shown = tail
    ? `its console ends with:\n${tail.replace(/^/gm, "  | ")}`
    : "its console shows nothing";
  return new ToolsmithError(code, `${message}; ${shown}`, { hint });
}

/** A broken connection shows in what becomes of the machine. */
function soon(answered: Promise<boolean>, ms: number): Promise<boolean> {
  const answer = new Promise<void>((done) => answered.then(() => done(), noop));
  return settlesWithin(answer, ms);
}

function noop() {}
