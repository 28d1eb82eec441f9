/**
 * Saves a running machine, as QEMU migrates one: memory and devices go over a
 * socket into a file, and what the guest wrote to its disk goes beside it.
 *
 * Commands are those of QEMU's QMP reference: `stop`, `migrate`,
 * `query-blockstats`, `drive-backup`, `cont`.
 *
 * @module
 */
import { join } from "@std/path";
import { ToolsmithError } from "./errors.ts";
import type { Qmp } from "./qmp.ts";
import type { SavedState, StateStaging } from "./saved_states.ts";

const SOCKET = "migration";
const FRAME = 1024 * 1024;
const POLL_MS = 5;
/** Nothing else uses the socket: QEMU need not be slowed down. */
const BANDWIDTH = 2 ** 40;
const LONGEST_MS = 120_000;

/** A machine that goes on while its state is put into place. */
export interface Saving {
  /** Time that the machine stood still, in milliseconds. */
  stoodMs: number;
  /** Settles when the state is in its place, or cannot be. */
  placed: Promise<SavedState>;
}

/**
 * Saves a machine and lets it go on. It stands still while its memory is
 * copied; syncing to the disk happens while it runs again.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the
 * machine's folder, and `--allow-write` for the staging folder.
 *
 * @param qmp The connection to QEMU.
 * @param folder The machine's folder.
 * @param staging Where to write; it is disposed of in the end.
 * @returns The save, once the machine runs again.
 * @throws {ToolsmithError} `guest_failed` when QEMU cannot save this machine;
 * it runs again all the same.
 */
export async function saveMachine(
  qmp: Qmp,
  folder: string,
  staging: StateStaging,
): Promise<Saving> {
  const begun = performance.now();
  try {
    await qmp.send(["stop"]);
    try {
      await copyMemory(qmp, join(folder, SOCKET), staging.state);
      if (await hasWritten(qmp)) await copyDisk(qmp, staging.disk);
    } finally {
      await qmp.send(["cont"]);
    }
  } catch (error) {
    await staging[Symbol.asyncDispose]();
    throw error;
  }
  const stoodMs = Math.round(performance.now() - begun);
  const placed = staging.place()
    .finally(() => staging[Symbol.asyncDispose]());
  placed.catch(() => {});
  return { stoodMs, placed };
}

/** QEMU connects to a socket of ours: its sandbox lets it start no program. */
async function copyMemory(qmp: Qmp, socket: string, file: string) {
  await Deno.remove(socket).catch(() => {});
  using listener = Deno.listen({ transport: "unix", path: socket });
  const received = receive(listener, file);
  received.catch(() => {});
  await qmp.send(
    ["migrate-set-parameters", { "max-bandwidth": BANDWIDTH }],
    ["migrate", { uri: `unix:${socket}` }],
  );
  const deadline = Date.now() + LONGEST_MS;
  while (true) {
    const [answer] = await qmp.send(["query-migrate"]);
    const { status, "error-desc": reason } = answer as Migration;
    if (status === "completed") break;
    if (status === "failed" || status === "cancelled") {
      throw notSaved(reason ?? status);
    }
    if (Date.now() > deadline) {
      await qmp.send(["migrate_cancel"]);
      throw notSaved(`it took longer than ${LONGEST_MS / 1000} s`);
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
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
    for (let at = 0; at < count;) {
      at += await file.write(buffer.subarray(at, count));
    }
  }
}

async function hasWritten(qmp: Qmp): Promise<boolean> {
  const [answer] = await qmp.send(["query-blockstats"]);
  return (answer as { stats: { wr_operations: number } }[])
    .some(({ stats }) => stats.wr_operations > 0);
}

/** Copies the clusters that the guest wrote, over the image as their base. */
async function copyDisk(qmp: Qmp, target: string) {
  await qmp.send(["drive-backup", {
    "job-id": "save",
    device: "disk",
    target,
    format: "qcow2",
    sync: "top",
    "auto-dismiss": false,
  }]);
  while (true) {
    const [answer] = await qmp.send(["query-jobs"]);
    const job = (answer as Job[]).find(({ id }) => id === "save");
    if (!job || job.status === "concluded") {
      await qmp.send(["job-dismiss", { id: "save" }]).catch(() => {});
      if (job?.error) throw notSaved(job.error);
      break;
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
  await Deno.chmod(target, 0o600);
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
