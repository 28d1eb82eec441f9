/** Saves a booted VM as a snapshot, and restores a VM from one. */
import type { SnapshotFiles, SnapshotStaging } from "../cache/snapshots.ts";
import { ToolsmithError } from "../errors.ts";
import { prepareGuestForSnapshot } from "../guest/setup.ts";
import {
  connectFirstCommandPorts,
  startWarmShell,
  warmShellOnPorts,
} from "../guest/warm_shell.ts";
import { join } from "../path.ts";
import { isPresentAtBoot } from "../qemu/args.ts";
import {
  assertBackingChain,
  assertOverlayOfImage,
  writeOverlay,
} from "../qemu/disk.ts";
import { singleProcessMonitor } from "../qemu/monitor.ts";
import {
  type QemuPlan,
  type QemuProcess,
  startQemu,
} from "../qemu/qemu_process.ts";
import type { QmpConnection } from "../qemu/qmp.ts";
import { VM_FILES } from "../qemu/vm_dir.ts";
import { sleep } from "../system/time.ts";
import type { StartingVm } from "./_boot_attempt.ts";

const MIGRATION_POLL_MS = 5;
/** In bytes per second: no limit. */
const MAX_BYTES_PER_SECOND = 2 ** 40;
const MIGRATION_TIMEOUT_MS = 120_000;

/** The VM cannot be saved on this host, only booted. */
export class CannotSaveVmError extends Error {}

/**
 * Starts a QEMU whose memory and disk are files of a new snapshot. Throws
 * {@linkcode CannotSaveVmError} when the files cannot be created or mapped.
 */
export async function startSavableQemu(
  plan: QemuPlan,
  { dir, disk, memory, state }: SnapshotStaging,
): Promise<QemuProcess> {
  try {
    await writeOverlay(disk, plan.disk);
    for (const path of [state, memory]) {
      const how = { createNew: true, mode: 0o600 };
      await Deno.writeFile(path, new Uint8Array(), how);
    }
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new CannotSaveVmError(errorSummary(error));
  }
  try {
    return await startQemu({
      ...plan,
      ...{ disk, ephemeral: false, skipFlushes: true, unfinishedDir: dir },
      memoryFile: { path: memory, keepsWrites: true },
    });
  } catch (error) {
    // An older QEMU rejects the arguments or the migration capability.
    const isRejected = error instanceof ToolsmithError &&
      ["boot_failed", "guest_failed"].includes(error.code);
    if (!isRejected) throw error;
    const reason = errorSummary(error);
    throw new CannotSaveVmError(`QEMU cannot map guest memory: ${reason}`);
  }
}

/**
 * Starts a QEMU that waits to load a snapshot. Rejects one whose disk is not an overlay
 * of the image: it may come from another host. If this process dies, `unfinished` is
 * removed, the staging directory of an uncommitted snapshot.
 */
export async function startRestoringQemu(
  plan: QemuPlan,
  { path, disk, memory }: SnapshotFiles,
  unfinished?: string,
): Promise<QemuProcess> {
  await assertOverlayOfImage(disk, plan.disk);
  return await startQemu({
    ...plan,
    ...{ disk, incoming: path, unfinishedDir: unfinished },
    memoryFile: { path: memory, keepsWrites: false },
  });
}

/**
 * Saves a booted guest and leaves it stopped, as it would overwrite the saved memory.
 * Returns the QEMU that waits to resume it; `undefined` if it was not saved and runs on.
 */
export async function saveGuest(vm: StartingVm) {
  const staging = vm.attempt.staging!;
  const successor = vm.agent && await trySaveGuest(vm, staging);
  if (successor) return successor;
  // QEMU keeps the unlinked files open. Files that cannot be removed are swept later.
  await Promise.resolve(staging[Symbol.asyncDispose]()).catch(noop);
  vm.consoleInput.resume();
  vm.attempt.timer.endPhase("save");
}

async function trySaveGuest(vm: StartingVm, staging: SnapshotStaging) {
  const { qemu, monitor, consoleInput, attempt } = vm;
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
    if (consoleInput.hasForwarded) return undefined;
    const successor = await starting;
    attempt.pausedAtMs = performance.now();
    await pauseAndSaveVm(qemu, staging.state);
    await monitor[Symbol.asyncDispose]();
    undo.move();
    return successor;
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
export async function resumeSavedGuest(vm: StartingVm): Promise<void> {
  const { options, slot, staging, timer, pausedAtMs } = vm.attempt;
  try {
    await restoreGuest(vm);
    await vm.agent;
  } catch (error) {
    options.signal?.throwIfAborted();
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new CannotSaveVmError(errorSummary(error));
  }
  slot!.commitInBackground(staging!, performance.now() - pausedAtMs!);
  timer.endPhase("save");
}

/**
 * Loads a snapshot and lets its guest run. Its warm shell is used before its agent
 * answers, which is awaited in the background.
 */
export async function restoreGuest(vm: StartingVm): Promise<void> {
  const { qemu, attempt: { slot } } = vm;
  const ports = await connectFirstCommandPorts(qemu.dir);
  try {
    await qemu.loadSnapshot();
    await assertBackingChain(qemu.qmp, qemu.plan, vm.facts.image);
    if (slot?.foundSnapshot && !await slot.isUnchanged()) {
      const reason = "another process replaced the snapshot";
      throw new ToolsmithError("boot_failed", reason);
    }
    await qemu.qmp.execute(["cont"]);
  } catch (error) {
    ports[Symbol.dispose]();
    throw error;
  }
  vm.agent = vm.watch.connectToAgent();
  vm.agent.catch(noop);
  vm.monitor = singleProcessMonitor(qemu.dir, qemu.qmp, vm.agent);
  vm.warmShell = warmShellOnPorts(vm.monitor, ports);
}

/**
 * Stops the guest and writes the VM's state to a file, by a QEMU migration (QEMU's QMP
 * reference): device states, and memory that is not in a file already, arrive over a
 * socket. QEMU flushes the disk before. On failure the guest runs on, and its memory and
 * disk files cannot be used for a snapshot any more.
 */
export async function pauseAndSaveVm(
  { qmp, dir }: Pick<QemuProcess, "qmp" | "dir">,
  state: string,
): Promise<void> {
  await qmp.execute(["stop"]);
  try {
    await migrateToFile(qmp, join(dir, VM_FILES.migration), state);
  } catch (error) {
    await qmp.execute(["cont"]);
    throw error;
  }
}

/** Migrates to a socket, as QEMU's sandbox forbids `exec:` targets. */
async function migrateToFile(qmp: QmpConnection, socket: string, file: string) {
  using listener = Deno.listen({ transport: "unix", path: socket });
  const received = saveMigrationStream(listener, file);
  let writeError: Error | undefined;
  received.catch((error) => writeError = error);
  await qmp.execute(
    ["migrate-set-parameters", { "max-bandwidth": MAX_BYTES_PER_SECOND }],
    ["migrate", { uri: `unix:${socket}` }],
  );
  const failure = (why: string) =>
    new ToolsmithError("guest_failed", `QEMU cannot save the VM: ${why}`);
  const begun = performance.now();
  while (true) {
    const [answer] = await qmp.execute(["query-migrate"]);
    const info = answer as Record<string, string | undefined>;
    const { status, "error-desc": reason } = info;
    if (status === "completed") break;
    if (status === "failed" || status === "cancelled") {
      throw failure(writeError?.message ?? reason ?? status);
    }
    if (performance.now() - begun > MIGRATION_TIMEOUT_MS) {
      await qmp.execute(["migrate_cancel"]);
      const seconds = MIGRATION_TIMEOUT_MS / 1000;
      throw failure(`not finished within ${seconds} s`);
    }
    await sleep(MIGRATION_POLL_MS);
  }
  await received;
}

async function saveMigrationStream(listener: Deno.UnixListener, path: string) {
  using connection = await listener.accept();
  const how = { write: true, create: true, mode: 0o600 };
  using file = await Deno.open(path, how);
  await connection.readable.pipeTo(file.writable);
}

/** The first line of an error's message, without the console's tail. */
export function errorSummary(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split(/\n|; its console /)[0];
}

function noop() {}
