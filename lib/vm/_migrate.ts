/**
 * Saves a running machine, as QEMU migrates one: devices, and memory that is not
 * in a file already, go over a socket into a file. What the guest wrote to its
 * disk is in a file then: QEMU lets go of it.
 *
 * Commands are those of QEMU's QMP reference: `stop`, `migrate`, `cont`.
 *
 * @module
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { MACHINE_FILES } from "../qemu/machine_dir.ts";
import type { Qmp } from "../qemu/qmp.ts";
import { writeAll } from "../system/streams.ts";
import { sleep } from "../system/time.ts";

const FRAME = 1024 * 1024;
const POLL_MS = 5;
/** Nothing else uses the socket: QEMU need not be slowed down. */
const BANDWIDTH = 2 ** 40;
const LONGEST_MS = 120_000;

/**
 * Stops a machine and writes its state. If that cannot be done, it runs again.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the
 * machine's directory, and `--allow-write` for the staging directory.
 *
 * @param qmp The connection to QEMU.
 * @param paths The machine's directory, and where the state goes. Memory and disk
 * that have files of their own are of no use once the machine runs again.
 * @throws {ToolsmithError} `guest_failed` when QEMU cannot save this machine.
 */
export async function saveMachine(
  qmp: Qmp,
  { dir, state }: { dir: string; state: string },
): Promise<void> {
  await qmp.send(["stop"]);
  try {
    await copyState(qmp, join(dir, MACHINE_FILES.migration), state);
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
    create: true,
    mode: 0o600,
  });
  const buffer = new Uint8Array(FRAME);
  while (true) {
    const count = await connection.read(buffer);
    if (count === null) return;
    await writeAll(file, buffer.subarray(0, count));
  }
}

function notSaved(reason: string): ToolsmithError {
  return new ToolsmithError(
    "guest_failed",
    `QEMU cannot save the machine: ${reason}`,
  );
}
