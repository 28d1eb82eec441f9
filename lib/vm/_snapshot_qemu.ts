/**
 * Starts QEMU on the files of a snapshot, to save a VM there or to restore it, and saves.
 */
import type { SnapshotFiles, SnapshotStaging } from "../cache/snapshots.ts";
import { ToolsmithError } from "../errors.ts";
import { join } from "../path.ts";
import { assertOverlayOfImage, writeOverlay } from "../qemu/disk.ts";
import {
  type QemuPlan,
  type QemuProcess,
  startQemu,
} from "../qemu/qemu_process.ts";
import type { QmpConnection } from "../qemu/qmp.ts";
import { VM_FILES } from "../qemu/vm_dir.ts";
import { sleep } from "../system/time.ts";

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
  await Deno.remove(socket).catch(() => {});
  using listener = Deno.listen({ transport: "unix", path: socket });
  const received = saveMigrationStream(listener, file);
  let writeError: Error | undefined;
  received.catch((error) => writeError = error);
  await qmp.execute(
    ["migrate-set-parameters", { "max-bandwidth": MAX_BYTES_PER_SECOND }],
    ["migrate", { uri: `unix:${socket}` }],
  );
  const begun = performance.now();
  while (true) {
    const [answer] = await qmp.execute(["query-migrate"]);
    const { status, "error-desc": reason } = answer as MigrationInfo;
    if (status === "completed") break;
    if (status === "failed" || status === "cancelled") {
      throw saveFailedError(writeError?.message ?? reason ?? status);
    }
    if (performance.now() - begun > MIGRATION_TIMEOUT_MS) {
      await qmp.execute(["migrate_cancel"]);
      const seconds = MIGRATION_TIMEOUT_MS / 1000;
      throw saveFailedError(`not finished within ${seconds} s`);
    }
    await sleep(MIGRATION_POLL_MS);
  }
  await received;
}

interface MigrationInfo {
  status?: string;
  "error-desc"?: string;
}

async function saveMigrationStream(listener: Deno.UnixListener, path: string) {
  using connection = await listener.accept();
  const how = { write: true, create: true, mode: 0o600 };
  using file = await Deno.open(path, how);
  await connection.readable.pipeTo(file.writable);
}

function saveFailedError(reason: string): ToolsmithError {
  const message = `QEMU cannot save the VM: ${reason}`;
  return new ToolsmithError("guest_failed", message);
}

/** The first line of an error's message, without the console's tail. */
export function errorSummary(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split(/\n|; its console /)[0];
}
