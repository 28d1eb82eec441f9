/**
 * Starts QEMU on the files of a snapshot, to save a VM there or to restore it.
 */
import type { SnapshotFiles, SnapshotStaging } from "../cache/snapshots.ts";
import { ToolsmithError } from "../errors.ts";
import { assertOverlayOfImage, writeOverlay } from "../qemu/disk.ts";
import {
  type QemuPlan,
  type QemuProcess,
  startQemu,
} from "../qemu/qemu_process.ts";

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

/** The first line of an error's message, without the console's tail. */
export function errorSummary(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split(/\n|; its console /)[0];
}
