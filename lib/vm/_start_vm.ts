/**
 * Starts a VM with one accelerator: restores a matching snapshot, or boots and saves one.
 *
 *     a snapshot matches:          restore
 *     none, or restoring fails:    boot → save → resume
 *     the VM cannot be saved:      boot
 */
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import { identifyAgent } from "../guest/setup.ts";
import type { GuestShare } from "../qemu/args.ts";
import { assertBackingChain } from "../qemu/disk.ts";
import {
  AcceleratorError,
  isDisconnection,
  VmDisconnectedError,
} from "../qemu/errors.ts";
import { singleProcessMonitor } from "../qemu/monitor.ts";
import { type QemuPlan, startQemu } from "../qemu/qemu_process.ts";
import { type BootAttempt, BootTimer, StartingVm } from "./_boot_attempt.ts";
import type { BootOptions } from "./boot_options.ts";
import { attachDevices, openNetworkCard } from "./_hotplug.ts";
import { makeVm } from "./_make_vm.ts";
import { bootFailureError } from "./_readiness.ts";
import {
  CannotSaveVmError,
  errorSummary,
  restoreGuest,
  resumeSavedGuest,
  saveGuest,
  startRestoringQemu,
  startSavableQemu,
} from "./_snapshot_qemu.ts";
import { findSnapshotSlot } from "./_snapshot_slot.ts";
import type { BootedVm } from "./vm.ts";

const OVERLAY_STOP_GRACE_MS = 10_000;
const NO_AGENT_WARNING =
  "The guest agent does not answer: only the console is available";

/**
 * Restores a VM, or boots and saves it, or boots it. Throws
 * {@linkcode AcceleratorError} when the accelerator does not work.
 */
export async function startVm(
  plan: QemuPlan,
  options: BootOptions,
  emit: Emit,
): Promise<BootedVm> {
  const slot = await findSnapshotSlot(plan, options, emit);
  const base = { plan, options, emit, slot };
  const newAttempt = () => ({ ...base, timer: new BootTimer() });
  if (slot?.foundSnapshot) {
    try {
      const attempt = newAttempt();
      const qemu = await startRestoringQemu(plan, slot.foundSnapshot);
      const vm = new StartingVm(attempt, qemu, "restore");
      return await runOrCleanUp(vm, async () => {
        vm.emitVmBoot();
        await restoreGuest(vm);
        attempt.timer.endPhase("start");
        return await finishBoot(vm);
      });
    } catch (error) {
      options.signal?.throwIfAborted();
      if (error instanceof Deno.errors.NotCapable) throw error;
      // Not the snapshot's fault: a boot would fail as well.
      const { code } = error as { code?: unknown };
      if (code === "usage" || code === "disk_full") throw error;
      await slot.removeAndWarn(errorSummary(error));
    }
  }
  const staging = await slot?.tryCreateStaging();
  if (staging) {
    try {
      return await bootAndSave({ ...newAttempt(), staging });
    } catch (error) {
      await staging[Symbol.asyncDispose]();
      if (!(error instanceof CannotSaveVmError)) throw error;
      slot!.warnNotSaved(error);
    }
  }
  const vm = new StartingVm(newAttempt(), await startQemu(plan), "boot");
  return await runOrCleanUp(vm, async () => {
    await bootGuest(vm);
    return await finishBoot(vm);
  });
}

/** Boots and saves a VM; a second QEMU continues it, while the first one ends. */
async function bootAndSave(attempt: BootAttempt): Promise<BootedVm> {
  const qemu = await startSavableQemu(attempt.plan, attempt.staging!);
  const first = new StartingVm(attempt, qemu, "boot");
  const up = await runOrCleanUp(first, async () => {
    await bootGuest(first);
    return await saveGuest(first) ?? await finishBoot(first);
  });
  if ("facts" in up) return up;
  const ending = first.endQemu();
  try {
    const second = new StartingVm(attempt, up, "restore");
    return await runOrCleanUp(second, async () => {
      await resumeSavedGuest(second);
      return await finishBoot(second);
    });
  } finally {
    await ending;
  }
}

/** Runs the steps of a start; if they fail or are aborted, ends QEMU and cleans up. */
async function runOrCleanUp<Result>(
  vm: StartingVm,
  steps: () => Promise<Result>,
): Promise<Result> {
  const { qemu, attempt: { options: { signal }, emit } } = vm;
  // Killing QEMU ends every wait from here on.
  const cancel = () => void qemu[Symbol.asyncDispose]();
  signal?.addEventListener("abort", cancel, { once: true });
  try {
    signal?.throwIfAborted();
    return await steps();
  } catch (error) {
    await vm.endAndClearSetIdBits(signal).catch(({ message }: Error) =>
      signal?.aborted || emit({ type: "warning", message })
    );
    signal?.throwIfAborted();
    throw await explainStartError(vm, error);
  } finally {
    signal?.removeEventListener("abort", cancel);
    await vm.watch[Symbol.asyncDispose]();
  }
}

/** Finds the cause of an error, now that QEMU has ended. */
async function explainStartError(
  { qemu, how, attempt: { staging } }: StartingVm,
  error: unknown,
): Promise<unknown> {
  // On a full disk, writes to the guest's disk fail, and to its memory raise SIGBUS.
  const isFull = (error as { code?: unknown }).code === "disk_full" ||
    (await qemu.ended).signal === "SIGBUS";
  if (staging && how === "boot" && isFull) {
    return new CannotSaveVmError("no disk space left for the snapshot");
  }
  const isLost = error instanceof VmDisconnectedError ||
    isDisconnection(error) || qemu.consoleFailure();
  return isLost ? await bootFailureError(qemu) : error;
}

/** Boots the guest and waits until its agent answers. */
export async function bootGuest(vm: StartingVm): Promise<void> {
  const { qemu, watch, attempt } = vm;
  vm.emitVmBoot();
  await assertBackingChain(qemu.qmp, qemu.plan, vm.facts.image);
  await qemu.qmp.execute(["cont"]);
  attempt.timer.endPhase("start");
  const connecting = watch.connectToAgent();
  vm.agent = await orWarnIfLate(attempt, connecting, NO_AGENT_WARNING);
  vm.monitor = singleProcessMonitor(qemu.dir, qemu.qmp, vm.agent);
  if (vm.agent) {
    const name = identifyAgent(vm.monitor, watch.signal);
    attempt.agentName = await orWarnIfLate(attempt, name);
  }
  attempt.timer.endPhase("guest");
}

/** Turns a timeout into a warning if a console is enough (`agentOptional`). */
async function orWarnIfLate<Result>(
  { options, emit }: BootAttempt,
  work: Promise<Result>,
  warning?: string,
): Promise<Result | undefined> {
  try {
    return await work;
  } catch (error) {
    const isLate = (error as { code?: unknown }).code === "guest_not_ready";
    if (!isLate || !options.agentOptional) throw error;
    emit({ type: "warning", message: warning ?? errorSummary(error) });
  }
}

/** Mounts directories and plugs in the network card. */
export async function finishBoot(vm: StartingVm): Promise<BootedVm> {
  const { attempt, agent, facts: { image }, monitor, warmShell } = vm;
  const { plan, options, emit, slot, timer, agentName } = attempt;
  if (!agent) return makeBootedVm(vm, []);
  vm.exportDirs = plan.shares.filter(({ writable }) => writable)
    .map(({ path }) => path);
  // Also a VM that was saved a moment ago has booted.
  const how = slot?.foundSnapshot ? "restored" : "booted";
  const card = openNetworkCard(vm.facts, options.network, emit);
  vm.network = card?.network;
  const attaching = attachDevices(monitor, plan.shares, {
    ...options,
    card,
    warmShell,
    emit,
    // The clock of a guest that was paused in a snapshot is behind.
    setClock: vm.how === "restore",
    // Instead of waiting longer for a restored guest, the image is booted.
    bootTimeoutMs: how === "restored" ? undefined : options.bootTimeoutMs,
  });
  const [shares] = await Promise.all([attaching, agent]);
  timer.endPhase("attach");
  const { phases } = timer;
  const elapsedMs = Object.values(phases).reduce((sum, ms) => sum + ms);
  emit({ type: "boot_ready", image, how, phases, elapsedMs, agent: agentName });
  return makeBootedVm(vm, shares);
}

function makeBootedVm(vm: StartingVm, shares: GuestShare[]): BootedVm {
  const { qemu, monitor, warmShell, consoleInput, attempt } = vm;
  const { options, emit, slot } = attempt;
  const booted = makeVm({
    facts: { ...vm.facts, shares },
    monitor,
    warmShell,
    emit,
    ended: qemu.ended.then(() => {}),
    haltError: qemu.haltingDiskError,
    graceMs: options.overlay === undefined ? 0 : OVERLAY_STOP_GRACE_MS,
    async endReason() {
      const error = await bootFailureError(qemu);
      // The guest has already run: another accelerator cannot be tried.
      return error instanceof AcceleratorError
        ? new ToolsmithError("guest_failed", `QEMU exited: ${error.message}`)
        : error;
    },
    killQemu: () => qemu[Symbol.asyncDispose](),
    async cleanUp(signal) {
      // Before QEMU ends, as ending it pauses the input, which then cannot be cancelled.
      await consoleInput.cancel();
      await vm.endAndClearSetIdBits(signal ?? options.signal);
    },
  });
  return {
    ...booted,
    needsThisProcess: vm.network !== undefined,
    async leaveRunning() {
      warmShell?.[Symbol.dispose]();
      await monitor[Symbol.asyncDispose]();
      await consoleInput.cancel();
      await slot?.waitForCommit();
      await qemu.leaveRunning();
    },
  };
}
