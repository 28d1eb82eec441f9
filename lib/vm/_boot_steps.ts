/**
 * The steps of a boot attempt: boot, save and resume, or restore; then mount
 * directories and plug in the network card.
 */
import type { SnapshotStaging } from "../cache/snapshots.ts";
import { ToolsmithError } from "../errors.ts";
import { identifyAgent, prepareGuestForSnapshot } from "../guest/setup.ts";
import {
  connectFirstCommandPorts,
  startWarmShell,
  warmShellOnPorts,
} from "../guest/warm_shell.ts";
import { resolve } from "../path.ts";
import type { AgentConnection } from "../qemu/agent.ts";
import { type GuestShare, isPresentAtBoot } from "../qemu/args.ts";
import { assertBackingChain } from "../qemu/disk.ts";
import { AcceleratorError } from "../qemu/errors.ts";
import { type Monitor, singleProcessMonitor } from "../qemu/monitor.ts";
import type { StartingVm } from "./_boot_attempt.ts";
import { parseNetworkRules } from "./boot_options.ts";
import { openGuestNetwork } from "./_guest_network.ts";
import { attachDevices } from "./_hotplug.ts";
import { makeVm } from "./_make_vm.ts";
import {
  BootTimeoutError,
  bootTimeouts,
  restoreTimeouts,
  watchBootProgress,
} from "./_boot_progress.ts";
import {
  CannotSaveVmError,
  errorSummary,
  pauseAndSaveVm,
  startRestoringQemu,
} from "./_snapshot_qemu.ts";
import {
  bootFailureError,
  guestNotReadyError,
  waitForAgent,
} from "./_readiness.ts";
import type { BootedVm } from "./vm.ts";

export interface RunningGuest {
  how: "booted" | "restored";
  monitor: Monitor;
  /** May not have answered yet; `undefined` for a guest with only a console. */
  agent: AgentConnection | Promise<AgentConnection> | undefined;
  agentName?: string;
  /** Is the guest's clock behind, as it was paused in a snapshot? */
  isClockBehind: boolean;
}

const OVERLAY_STOP_GRACE_MS = 10_000;
const NO_AGENT_WARNING =
  "The guest agent does not answer: only the console is available";

/** Boots the guest and waits until its agent answers. */
export async function bootGuest(vm: StartingVm): Promise<RunningGuest> {
  const { qemu, attempt: { options, timer } } = vm;
  emitVmBoot(vm, "boot");
  await using progress = watchBootProgress(qemu, bootTimeouts(options));
  const { signal } = progress;
  await assertOpenedDiskFiles(vm);
  await qemu.qmp.execute(["cont"]);
  timer.endPhase("start");
  const agent = await warnOrThrowIfLate(vm, waitForAgent(qemu, signal));
  const monitor = singleProcessMonitor(qemu.dir, qemu.qmp, agent);
  const agentName = agent &&
    await warnOrThrowIfLate(vm, identifyAgent(monitor, signal), "cloud-init");
  timer.endPhase("guest");
  return { how: "booted", monitor, agent, agentName, isClockBehind: false };
}

/** Restores the guest. Its warm shell is used before its agent answers. */
export async function restoreGuest(vm: StartingVm): Promise<BootedVm> {
  const { qemu, attempt: { options, timer } } = vm;
  emitVmBoot(vm, "restore");
  await using progress = watchBootProgress(qemu, restoreTimeouts(options));
  const guest = await loadAndRunGuest(vm, progress.signal);
  timer.endPhase("start");
  return await finishBoot(vm, { how: "restored", ...guest });
}

/**
 * Saves a booted guest and leaves it stopped, as it would overwrite the saved memory;
 * `undefined` if it was not saved and the guest runs on.
 */
export async function saveGuest(
  vm: StartingVm,
  staging: SnapshotStaging,
  guest: RunningGuest,
) {
  const saved = guest.agent && await trySaveGuest(vm, staging, guest);
  if (saved) return saved;
  // QEMU keeps the unlinked files open. Files that cannot be removed are swept later.
  await Promise.resolve(staging[Symbol.asyncDispose]()).catch(noop);
  vm.consoleInput.resume();
  vm.attempt.timer.endPhase("save");
}

async function trySaveGuest(
  vm: StartingVm,
  staging: SnapshotStaging,
  { monitor, agentName }: RunningGuest,
) {
  const { qemu, consoleInput, attempt } = vm;
  const { plan, slot, timer, options: { signal } } = attempt;
  // The successor starts while the guest settles.
  const files = { ...staging, path: staging.state };
  const starting = startRestoringQemu(plan, files, staging.dir);
  starting.catch(noop);
  await using undo = new AsyncDisposableStack();
  undo.defer(() =>
    starting.then((it) => it[Symbol.asyncDispose]()).catch(noop)
  );
  try {
    const shares = plan.shares.filter(isPresentAtBoot);
    const settling = { bootMs: timer.phases.guest, signal };
    await prepareGuestForSnapshot(monitor, shares, settling);
    // A guest that cannot start this shell could not run commands either.
    vm.warmShell = await startWarmShell(monitor, signal);
    timer.endPhase("guest");
    await consoleInput.pause();
    // Console input may have changed the guest, so it must not be reused.
    if (consoleInput.hasForwardedInput()) return undefined;
    const successor = await starting;
    const stoppedAt = performance.now();
    await pauseAndSaveVm(qemu, staging.state);
    await monitor[Symbol.asyncDispose]();
    undo.move();
    return { successor, pausedAtMs: stoppedAt, agentName };
  } catch (error) {
    if (signal?.aborted || error instanceof Deno.errors.NotCapable) throw error;
    slot!.warnNotSaved(error);
  }
}

/**
 * Resumes the saved VM in its successor, which proves that the snapshot restores, and
 * commits the snapshot. Throws {@linkcode CannotSaveVmError} when the saved VM does not
 * run.
 */
export async function resumeSavedGuest(
  vm: StartingVm,
  staging: SnapshotStaging,
  { pausedAtMs, agentName }: { pausedAtMs: number; agentName?: string },
): Promise<BootedVm> {
  const { qemu, attempt: { options, slot, timer } } = vm;
  await using progress = watchBootProgress(qemu, restoreTimeouts(options));
  const load = async () => {
    const guest = await loadAndRunGuest(vm, progress.signal);
    await guest.agent;
    return guest;
  };
  const guest = await load().catch((error) => {
    options.signal?.throwIfAborted();
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new CannotSaveVmError(errorSummary(error));
  });
  slot!.commitInBackground(staging, performance.now() - pausedAtMs);
  timer.endPhase("save");
  return await finishBoot(vm, { how: "booted", ...guest, agentName });
}

export async function finishBoot(
  vm: StartingVm,
  { how, monitor, agent, agentName, isClockBehind }: RunningGuest,
): Promise<BootedVm> {
  const { attempt: { plan, options, emit, timer }, warmShell } = vm;
  if (!agent) return makeBootedVm(vm, monitor, []);
  vm.exportDirs = plan.shares.filter(({ writable }) => writable)
    .map(({ path }) => path);
  const rules = parseNetworkRules(options.network);
  vm.network = rules && openGuestNetwork(vm.facts(), rules, emit);
  const network = options.network === "host-loopback"
    ? options.network
    : vm.network;
  const wanted = {
    ...options,
    network,
    setClock: isClockBehind,
    warmShell,
    emit,
    // Instead of waiting longer for a restored guest, the image is booted.
    bootTimeoutMs: how === "restored" ? undefined : options.bootTimeoutMs,
  };
  const attaching = attachDevices(monitor, plan.shares, wanted);
  const [shares] = await Promise.all([attaching, agent]);
  timer.endPhase("attach");
  const { phases } = timer;
  const elapsedMs = Object.values(phases).reduce((sum, ms) => sum + ms);
  const { image } = vm.facts();
  const ready = { how, phases, elapsedMs, agent: agentName };
  emit({ type: "boot_ready", image, ...ready });
  return makeBootedVm(vm, monitor, shares);
}

/** Loads a snapshot and lets its guest run; the agent is awaited in the background. */
async function loadAndRunGuest(vm: StartingVm, signal: AbortSignal) {
  const { qemu, attempt: { slot } } = vm;
  const ports = await connectFirstCommandPorts(qemu.dir);
  try {
    await qemu.loadSnapshot();
    await assertOpenedDiskFiles(vm);
    if (slot?.foundSnapshot && !await slot.isUnchanged()) {
      const reason = "another process replaced the snapshot";
      throw new ToolsmithError("boot_failed", reason);
    }
    await qemu.qmp.execute(["cont"]);
  } catch (error) {
    ports.disconnect();
    throw error;
  }
  const agent = waitForAgent(qemu, signal).catch((error) => {
    const isLate = error instanceof BootTimeoutError;
    throw isLate ? guestNotReadyError(qemu, error) : error;
  });
  agent.catch(noop);
  const monitor = singleProcessMonitor(qemu.dir, qemu.qmp, agent);
  vm.warmShell = warmShellOnPorts(monitor, ports);
  return { monitor, agent, isClockBehind: true };
}

/** Catches disk files that were replaced between their validation and QEMU's open. */
async function assertOpenedDiskFiles({ qemu, attempt }: StartingVm) {
  const image = resolve(attempt.options.image);
  const { disk } = qemu.plan;
  const files = disk === image ? [image] : [disk, image];
  await assertBackingChain(qemu.qmp, files, qemu.plan);
}

/** Turns a timeout into a warning if a console is enough (`agentOptional`). */
async function warnOrThrowIfLate<Result>(
  { qemu, attempt: { options, emit } }: StartingVm,
  work: Promise<Result>,
  what?: "cloud-init",
): Promise<Result | undefined> {
  try {
    return await work;
  } catch (error) {
    if (!(error instanceof BootTimeoutError)) throw error;
    const late = guestNotReadyError(qemu, error, what);
    if (!options.agentOptional) throw late;
    const message = what ? errorSummary(late) : NO_AGENT_WARNING;
    emit({ type: "warning", message });
  }
}

function emitVmBoot(vm: StartingVm, how: "boot" | "restore") {
  const { image, version, accelerator, memory, cpus } = vm.facts();
  const size = { version, accelerator, memory, cpus };
  const { emit } = vm.attempt;
  emit({ type: "vm_boot", image, how, backend: "qemu", ...size });
}

function makeBootedVm(
  vm: StartingVm,
  monitor: Monitor,
  shares: GuestShare[],
): BootedVm {
  const { qemu, warmShell, consoleInput, attempt } = vm;
  const { options, emit, slot } = attempt;
  const booted = makeVm({
    facts: { ...vm.facts(), shares },
    monitor,
    warmShell,
    emit,
    ended: qemu.ended.then(noop),
    haltError: qemu.haltingDiskError,
    graceMs: options.overlay === undefined ? 0 : OVERLAY_STOP_GRACE_MS,
    async endReason() {
      const error = await bootFailureError(qemu);
      // The guest has already run: another accelerator cannot be tried.
      return error instanceof AcceleratorError
        ? new ToolsmithError("guest_failed", `QEMU exited: ${error.message}`)
        : error;
    },
    killQemu: async () => await qemu[Symbol.asyncDispose](),
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
    [Symbol.asyncDispose]: () => booted.stop(),
  };
}

function noop() {}
