/**
 * Starts the QEMU of a machine, in a directory of its own, with the files that
 * the machine starts from or is saved to.
 *
 * @module
 */
import type { SnapshotFiles, SnapshotStaging } from "../cache/snapshots.ts";
import { ToolsmithError } from "../errors.ts";
import { seedImage } from "../guest/seed.ts";
import { join } from "../path.ts";
import { checkOverlay, writeOverlay } from "../qemu/disk.ts";
import { type MachinePlan, startMachine } from "../qemu/machine.ts";
import { MACHINE_FILES, makeMachineDir } from "../qemu/machine_dir.ts";
import {
  type Course,
  NoPlaceError,
  NotSavable,
  reasonOf,
  type StartedMachine,
} from "./_course.ts";
import type { SnapshotSlot } from "./_snapshot.ts";

/**
 * Starts QEMU; the guest stands still yet.
 *
 * Needs `--allow-run=sh`, and `--allow-read`, `--allow-write` and
 * `--allow-net=unix:…` for the temporary directory.
 *
 * @param course The machine.
 * @returns The machine, and what it was started with.
 * @throws {NotSavable} When its memory is to be mapped, and cannot be.
 * @throws {NoPlaceError} When the files cannot be made that it is to be saved to.
 * @throws {ToolsmithError} What `startMachine` throws.
 * @throws {AcceleratorError} When QEMU cannot run the guest in this way.
 */
export async function startQemu(course: Course): Promise<StartedMachine> {
  const { slot, staging, files } = course;
  const plan = await withFiles(course);
  const dir = await makeMachineDir(plan.env);
  try {
    await writeOwn(join(dir, MACHINE_FILES.seed), seedImage());
    const qemu = { ...plan, dir };
    return { qemu, machine: await startMachine(qemu) };
  } catch (error) {
    await Deno.remove(dir, { recursive: true }).catch(() => {});
    // An older QEMU ends over the arguments, or does not know the capability.
    const isTried = staging && slot?.mapped && !files;
    const refused = error instanceof ToolsmithError &&
      ["boot_failed", "guest_failed"].includes(error.code);
    throw isTried && refused ? new NotSavable(reasonOf(error)) : error;
  }
}

/** The machine with the files that it starts from, or is saved to. */
async function withFiles(course: Course): Promise<MachinePlan> {
  const { plan, staging, files } = course;
  const unfinished = staging?.dir;
  if (files) {
    const { path, disk, memory } = files;
    // It may come from another host.
    if (!staging) await checkOverlay(disk, plan.disk);
    const memoryFile = memory ? { path: memory, shared: false } : undefined;
    return { ...plan, disk, incoming: path, memoryFile, unfinished };
  }
  if (!staging) return plan;
  try {
    return { ...plan, ...await makeFiles(course, staging), unfinished };
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new NoPlaceError(reasonOf(error));
  }
}

async function makeFiles(
  { plan, slot }: Course,
  { disk, memory, state }: SnapshotStaging,
): Promise<Partial<MachinePlan>> {
  await writeOverlay(disk, plan.disk);
  await writeOwn(state);
  const own = { disk, ephemeral: false, unsafe: true };
  if (!slot?.mapped) return own;
  await writeOwn(memory);
  return { ...own, memoryFile: { path: memory, shared: true } };
}

/**
 * Ends QEMU, and removes its directory.
 *
 * @param started The machine.
 */
export async function endQemu(started: StartedMachine): Promise<void> {
  await started.machine[Symbol.asyncDispose]();
  await Deno.remove(started.qemu.dir, { recursive: true }).catch(() => {});
}

/**
 * The files that a machine is saved to.
 *
 * @param staging Where they are.
 * @param slot Whether the memory is mapped.
 */
export function stagedFiles(
  staging: SnapshotStaging,
  slot: SnapshotSlot | undefined,
): SnapshotFiles {
  const { state: path, disk, memory } = staging;
  return { path, disk, ...slot?.mapped ? { memory } : {} };
}

async function writeOwn(path: string, bytes = new Uint8Array()) {
  await Deno.writeFile(path, bytes, { createNew: true, mode: 0o600 });
}
