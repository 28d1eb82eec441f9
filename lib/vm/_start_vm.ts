/**
 * Starts a VM with one accelerator: restores a matching snapshot, or boots and saves one.
 *
 *     a snapshot matches:          restore
 *     none, or restoring fails:    boot → save → resume
 *     the VM cannot be saved:      boot
 */
import type { SnapshotStaging } from "../cache/snapshots.ts";
import type { Emit } from "../events.ts";
import { isDisconnection, VmDisconnectedError } from "../qemu/errors.ts";
import { type QemuPlan, startQemu } from "../qemu/qemu_process.ts";
import { type BootAttempt, BootTimer, StartingVm } from "./_boot_attempt.ts";
import {
  bootGuest,
  finishBoot,
  restoreGuest,
  resumeSavedGuest,
  saveGuest,
} from "./_boot_steps.ts";
import type { BootOptions } from "./boot_options.ts";
import {
  CannotSaveVmError,
  errorSummary,
  startRestoringQemu,
  startSavableQemu,
} from "./_snapshot_qemu.ts";
import { bootFailureError } from "./_readiness.ts";
import { findSnapshotSlot } from "./_snapshot_slot.ts";
import type { BootedVm } from "./vm.ts";

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
      return await runOrCleanUp(new StartingVm(attempt, qemu), restoreGuest);
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
      return await bootAndSave(newAttempt(), staging);
    } catch (error) {
      await staging[Symbol.asyncDispose]();
      if (!(error instanceof CannotSaveVmError)) throw error;
      slot!.warnNotSaved(error);
    }
  }
  const attempt = newAttempt();
  const qemu = await startQemu(plan);
  const vm = new StartingVm(attempt, qemu);
  const boot = async () => await finishBoot(vm, await bootGuest(vm));
  return await runOrCleanUp(vm, boot);
}

/** Boots and saves a VM; a second QEMU continues it, while the first one ends. */
async function bootAndSave(
  attempt: BootAttempt,
  staging: SnapshotStaging,
): Promise<BootedVm> {
  const qemu = await startSavableQemu(attempt.plan, staging);
  const first = new StartingVm(attempt, qemu, staging);
  const up = await runOrCleanUp(first, async (vm) => {
    const guest = await bootGuest(vm);
    return await saveGuest(vm, staging, guest) ?? await finishBoot(vm, guest);
  });
  if ("facts" in up) return up;
  const ending = first.endQemu();
  try {
    const second = new StartingVm(attempt, up.successor);
    const resume = () => resumeSavedGuest(second, staging, up);
    return await runOrCleanUp(second, resume);
  } finally {
    await ending;
  }
}

/** Runs a step; if it fails or is aborted, ends QEMU and cleans up. */
async function runOrCleanUp<Result>(
  vm: StartingVm,
  work: (vm: StartingVm) => Promise<Result>,
): Promise<Result> {
  const { qemu, attempt: { options: { signal }, emit } } = vm;
  // Killing QEMU ends every wait from here on.
  const cancel = () => void qemu[Symbol.asyncDispose]();
  signal?.addEventListener("abort", cancel, { once: true });
  try {
    signal?.throwIfAborted();
    return await work(vm);
  } catch (error) {
    await vm.endAndClearSetIdBits(signal).catch(({ message }: Error) =>
      signal?.aborted || emit({ type: "warning", message })
    );
    signal?.throwIfAborted();
    throw await explainStartError(vm, error);
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
}

/** Finds the cause of an error, now that QEMU has ended. */
async function explainStartError(
  { qemu, staging }: StartingVm,
  error: unknown,
): Promise<unknown> {
  // On a full disk, writes to the guest's disk fail, and to its memory raise SIGBUS.
  const isFull = (error as { code?: unknown }).code === "disk_full" ||
    (await qemu.ended).signal === "SIGBUS";
  const reason = "no disk space left for the snapshot";
  if (staging && isFull) return new CannotSaveVmError(reason);
  const isLost = error instanceof VmDisconnectedError ||
    isDisconnection(error) || qemu.consoleFailure();
  return isLost ? await bootFailureError(qemu) : error;
}
