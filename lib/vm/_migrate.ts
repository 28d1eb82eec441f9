/**
 * Saves a running machine, as QEMU migrates one: devices, and memory that is not
 * in a file already, go over a socket into a file, and what the guest wrote to
 * its disk goes beside it.
 *
 * Commands are those of QEMU's QMP reference: `stop`, `migrate`,
 * `query-blockstats`, `blockdev-create`, `blockdev-backup`, `cont`.
 *
 * @module
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { DISK } from "../qemu/devices.ts";
import { MACHINE_FILES } from "../qemu/machine_dir.ts";
import type { Qmp } from "../qemu/qmp.ts";
import { writeAll } from "../system/streams.ts";
import { sleep } from "../system/time.ts";
import type { SnapshotStaging } from "../cache/snapshots.ts";

const FRAME = 1024 * 1024;
const POLL_MS = 5;
/** Nothing else uses the socket: QEMU need not be slowed down. */
const BANDWIDTH = 2 ** 40;
const LONGEST_MS = 120_000;

/**
 * Stops a machine and writes its snapshot. If that cannot be done, it runs again.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the
 * machine's directory, and `--allow-write` for the staging directory.
 *
 * @param qmp The connection to QEMU.
 * @param dir The machine's directory.
 * @param staging Where to write. Memory that has a file is not copied, and is of
 * no use once the machine runs again.
 * @throws {ToolsmithError} `guest_failed` when QEMU cannot save this machine.
 */
export async function saveMachine(
  qmp: Qmp,
  dir: string,
  staging: SnapshotStaging,
): Promise<void> {
  await qmp.send(["stop"]);
  try {
    // The disk comes first: QEMU lets go of it once the memory is away.
    if (await hasWritten(qmp)) await copyDisk(qmp, staging.disk);
    await copyState(qmp, join(dir, MACHINE_FILES.migration), staging.state);
  } catch (error) {
    await qmp.send(["cont"]);
    throw error;
  }
}

/** QEMU connects to a socket of ours: its sandbox lets it start no program. */
async function copyState(qmp: Qmp, socket: string, file: string) {
  await Deno.remove(socket).catch(() => {});
  using listener = Deno.listen({ transport: "unix", path: socket });
  const received = receive(listener, file);
  let trouble: Error | undefined;
  received.catch((error) => trouble = error);
  await qmp.send(
    ["migrate-set-parameters", { "max-bandwidth": BANDWIDTH }],
    ["migrate", { uri: `unix:${socket}` }],
  );
  const begun = performance.now();
  while (true) {
    const [answer] = await qmp.send(["query-migrate"]);
    const { status, "error-desc": reason } = answer as Migration;
    if (status === "completed") break;
    if (status === "failed" || status === "cancelled") {
      throw notSaved(trouble?.message ?? reason ?? status);
    }
    if (performance.now() - begun > LONGEST_MS) {
      await qmp.send(["migrate_cancel"]);
      throw notSaved(`it took longer than ${LONGEST_MS / 1000} s`);
    }
    await sleep(POLL_MS);
  }
  await received;
}

interface Migration {
  status?: string;
  "error-desc"?: string;
}

async function receive(listener: Deno.UnixListener, path: string) {
  using connection = await listener.accept();
  using file = await Deno.open(path, {
    write: true,
    createNew: true,
    mode: 0o600,
  });
  const buffer = new Uint8Array(FRAME);
  while (true) {
    const count = await connection.read(buffer);
    if (count === null) return;
    await writeAll(file, buffer.subarray(0, count));
  }
}

async function hasWritten(qmp: Qmp): Promise<boolean> {
  const [answer] = await qmp.send(["query-blockstats"]);
  return (answer as Stats[]).some(({ device, stats }) =>
    device === DISK && stats.wr_operations + stats.unmap_operations > 0
  );
}

interface Stats {
  device?: string;
  stats: { wr_operations: number; unmap_operations: number };
}

/**
 * Copies the clusters that the guest wrote, over the image as their base.
 * `drive-backup` would do it in one step, and would unlink the image: it opens
 * the base of an ephemeral disk as if that were ephemeral, too.
 */
async function copyDisk(qmp: Qmp, target: string) {
  const [answer] = await qmp.send(["query-block"]);
  const { inserted } = (answer as Block[]).find(({ device }) =>
    device === DISK
  )!;
  const { "virtual-size": size, "backing-image": base } = inserted.image;
  await Deno.writeFile(target, new Uint8Array(), {
    createNew: true,
    mode: 0o600,
  });
  const file = { driver: "file", "node-name": "kept-file", filename: target };
  // What is not copied need not be read.
  const disk = { driver: "qcow2", file: "kept-file", backing: null };
  await qmp.send(["blockdev-add", file]);
  await job(qmp, "blockdev-create", {
    options: {
      ...{ driver: "qcow2", file: "kept-file", size },
      ...{ "backing-file": base.filename, "backing-fmt": "qcow2" },
    },
  });
  await qmp.send(["blockdev-add", { ...disk, "node-name": "kept" }]);
  await job(qmp, "blockdev-backup", {
    ...{ device: DISK, target: "kept", sync: "top", "auto-dismiss": false },
  });
  await qmp.send(
    ["blockdev-del", { "node-name": "kept" }],
    ["blockdev-del", { "node-name": "kept-file" }],
  );
}

interface Block {
  device: string;
  inserted: {
    image: { "virtual-size": number; "backing-image": { filename: string } };
  };
}

/** Runs one of QEMU's jobs to its end. */
async function job(qmp: Qmp, name: string, args: Record<string, unknown>) {
  const id = "save";
  await qmp.send([name, { "job-id": id, ...args }]);
  while (true) {
    const [answer] = await qmp.send(["query-jobs"]);
    const { status, error } = (answer as Job[]).find((it) => it.id === id)!;
    if (status === "concluded") {
      await qmp.send(["job-dismiss", { id }]);
      if (error) throw notSaved(error);
      return;
    }
    await sleep(POLL_MS);
  }
}

interface Job {
  id: string;
  status: string;
  error?: string;
}

function notSaved(reason: string): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `QEMU cannot save the machine: ${reason}`,
  );
}
