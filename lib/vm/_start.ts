/**
 * Starts a machine with one accelerator: restored from a snapshot that fits, or
 * booted, and saved then for the next time.
 *
 * @module
 */
import {
  type Course,
  NotMappable,
  reasonOf,
  type Start,
  startClock,
} from "./_course.ts";
import { bringUp, release } from "./_bring_up.ts";
import type { BootOptions } from "./options.ts";
import type { SnapshotFiles, SnapshotStaging } from "../cache/snapshots.ts";
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import { startMachine, type StartMachineOptions } from "../qemu/machine.ts";
import { isDisconnection, VmDisconnectedError } from "../qemu/errors.ts";
import { fingerprint } from "../system/files.ts";
import { bootFailure } from "./_readiness.ts";
import { findSlots } from "./_snapshot.ts";
import { relay } from "./_typing.ts";
import type { BootedVm } from "./vm.ts";

/**
 * Starts a machine.
 *
 * Needs what `boot` needs.
 *
 * @param plan The machine.
 * @param options What the caller chose.
 * @param emit Takes events.
 * @returns The machine, ready for commands.
 * @throws {ToolsmithError} What `boot` throws.
 * @throws {AcceleratorError} When QEMU cannot run the guest in this way.
 */
export async function startVm(
  plan: StartMachineOptions,
  options: BootOptions,
  emit: Emit,
): Promise<BootedVm> {
  const { snapshots, env, signal } = options;
  const slots = await findSlots(plan, { snapshots, env, emit });
  const request = () => ({ plan, options, emit, clock: startClock() });
  for (const slot of slots) {
    if (!slot.found) continue;
    try {
      return await startOnce({ ...request(), slot, files: slot.found });
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof Deno.errors.NotCapable) throw error;
      // The snapshot is not to blame, and a boot would fail as well.
      const { code } = error as { code?: unknown };
      if (code === "usage" || code === "disk_full") throw error;
      await slot.drop(reasonOf(error));
    }
  }
  for (const slot of slots) {
    if (!await slot.hasRoom()) continue;
    const staging = await slot.stage();
    if (!staging) break;
    try {
      return await startOnce({ ...request(), slot, staging });
    } catch (error) {
      if (!(error instanceof NotMappable)) throw error;
      const message = `The guest's memory cannot be mapped: ${error.message}`;
      emit({ type: "warning", message });
    }
  }
  return await startOnce(request());
}

async function startOnce(course: Course): Promise<BootedVm> {
  const { staging, options: { console, signal } } = course;
  let start: Start | undefined;
  const cancel = () => void start?.machine[Symbol.asyncDispose]();
  try {
    const machine = await startMachine(await machineOf(course))
      .catch((error) => notMappable(course, error));
    start = { ...course, machine, typing: relay(console?.input, machine) };
    // Every wait from here on is for an answer of QEMU or of its guest.
    signal?.addEventListener("abort", cancel, { once: true });
    signal?.throwIfAborted();
    const up = await bringUp(start);
    if ("facts" in up) return up;
    // Whoever goes on in its place owns the staging directory from here on.
    const files = await writtenFiles(staging!);
    start = undefined;
    return await startOnce({ ...course, files, saved: up });
  } catch (error) {
    if (start) await release(start);
    await staging?.[Symbol.asyncDispose]();
    signal?.throwIfAborted();
    if (!start) throw error;
    // A disk that is full cannot take what the guest writes to its memory.
    const { signal: endedBy } = await start.machine.ended;
    if (staging && endedBy === "SIGBUS") {
      throw new NotMappable("there is no space left");
    }
    const { machine } = start;
    const ended = error instanceof VmDisconnectedError ||
      isDisconnection(error) || machine.consoleFailure();
    throw ended ? await bootFailure(machine) : error;
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
}

/** The machine with the files that it starts from. */
async function machineOf(course: Course): Promise<StartMachineOptions> {
  const { plan, slot, staging, files } = course;
  const unfinished = staging?.dir;
  if (files) {
    const { path, disk = plan.disk, memory } = files;
    const memoryFile = memory ? { path: memory, shared: false } : undefined;
    return { ...plan, disk, incoming: path, memoryFile, unfinished };
  }
  if (!staging || !slot?.mapped) return { ...plan, unfinished };
  const path = staging.memory;
  await Deno.writeFile(path, new Uint8Array(), {
    createNew: true,
    mode: 0o600,
  });
  return { ...plan, memoryFile: { path, shared: true }, unfinished };
}

/** Whether a QEMU can map memory is found out by trying. */
function notMappable({ slot, files, saved }: Course, error: unknown): never {
  const tried = slot?.mapped && (!files || saved);
  if (!tried || !(error instanceof ToolsmithError)) throw error;
  // An older QEMU ends over the arguments, or does not know the capability.
  const refused = ["boot_failed", "guest_failed"].includes(error.code);
  throw refused ? new NotMappable(reasonOf(error)) : error;
}

async function writtenFiles(staging: SnapshotStaging): Promise<SnapshotFiles> {
  const { state: path, memory, disk } = staging;
  const wrote = await fingerprint(disk) !== undefined;
  return { path, memory, ...wrote ? { disk } : {} };
}
