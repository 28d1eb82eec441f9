/**
 * Starts a machine with one accelerator: restored from a snapshot that fits, or
 * booted, and saved then for the next time.
 *
 * @module
 */
import {
  type Course,
  NoPlaceError,
  NotSavable,
  reasonOf,
  type Start,
  startClock,
} from "./_course.ts";
import { bringUp, endMachine, release } from "./_bring_up.ts";
import type { BootOptions } from "./options.ts";
import type { Emit } from "../events.ts";
import { isDisconnection, VmDisconnectedError } from "../qemu/errors.ts";
import type { MachinePlan } from "../qemu/machine.ts";
import { stagedFiles, startQemu } from "./_qemu.ts";
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
  plan: MachinePlan,
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
      if (!(error instanceof NotSavable)) throw error;
      if (error instanceof NoPlaceError) {
        slot.fail(error);
        break;
      }
      const what = slot.mapped
        ? "The guest's memory cannot be mapped"
        : "The machine cannot be saved";
      emit({ type: "warning", message: `${what}: ${error.message}` });
    }
  }
  return await startOnce(request());
}

async function startOnce(course: Course): Promise<BootedVm> {
  const { staging, saved, slot, options: { console, signal } } = course;
  let start: Start | undefined;
  const warn = ({ message }: Error) =>
    signal?.aborted || course.emit({ type: "warning", message });
  const cancel = () => void start?.machine[Symbol.asyncDispose]();
  try {
    const started = saved?.successor ?? await startQemu(course);
    const { machine } = started;
    const files = staging && stagedFiles(staging, slot);
    start = {
      ...course,
      ...started,
      typing: relay(console?.input, machine),
      startSuccessor: () => startQemu({ ...course, files }),
    };
    // Every wait from here on is for an answer of QEMU or of its guest.
    signal?.addEventListener("abort", cancel, { once: true });
    signal?.throwIfAborted();
    const up = await bringUp(start);
    if ("facts" in up) return up;
    // Another goes on in its place, and owns the staging directory from here on.
    const ending = endMachine(start);
    start = undefined;
    try {
      return await startOnce({ ...course, files, saved: up });
    } finally {
      await ending;
    }
  } catch (error) {
    if (start) await release(start, signal).catch(warn);
    await staging?.[Symbol.asyncDispose]();
    signal?.throwIfAborted();
    if (!start) throw error;
    // A disk that is full takes nothing that the guest writes to its memory, or
    // to its own disk.
    const { signal: endedBy } = await start.machine.ended;
    const { code } = error as { code?: unknown };
    const isFull = endedBy === "SIGBUS" || code === "disk_full";
    if (staging && !saved && isFull) {
      throw new NoPlaceError("there is no space left");
    }
    const { machine } = start;
    const ended = error instanceof VmDisconnectedError ||
      isDisconnection(error) || machine.consoleFailure();
    throw ended ? await bootFailure(machine) : error;
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
}
