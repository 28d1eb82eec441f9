/**
 * Saves a running VM by a QEMU migration to a file: device states, and memory that is
 * not in a file already, arrive over a socket. QEMU flushes the disk before.
 *
 * QMP commands (QEMU's QMP reference): `stop`, `migrate`, `cont`.
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import type { QemuProcess } from "../qemu/qemu_process.ts";
import { VM_FILES } from "../qemu/vm_dir.ts";
import type { QmpConnection } from "../qemu/qmp.ts";
import { writeAll } from "../system/write_all.ts";
import { sleep } from "../system/time.ts";

const BUFFER_BYTES = 1024 * 1024;
const MIGRATION_POLL_MS = 5;
/** In bytes per second: no limit. */
const MAX_BYTES_PER_SECOND = 2 ** 40;
const MIGRATION_TIMEOUT_MS = 120_000;

/**
 * Stops the guest and writes the VM's state to a file. On failure the guest runs on,
 * and its memory and disk files cannot be used for a snapshot any more.
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
  const buffer = new Uint8Array(BUFFER_BYTES);
  while (true) {
    const count = await connection.read(buffer);
    if (count === null) return;
    await writeAll(file, buffer.subarray(0, count));
  }
}

function saveFailedError(reason: string): ToolsmithError {
  const message = `QEMU cannot save the VM: ${reason}`;
  return new ToolsmithError("guest_failed", message);
}
