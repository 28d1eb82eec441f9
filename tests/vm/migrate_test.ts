/**
 * What saving does with answers that a real QEMU gives too rarely to wait for: it
 * is asked through its monitor alone, so a monitor that says anything stands in.
 */
import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import type { Command, Qmp } from "../../lib/qemu/qmp.ts";
import { sleep } from "../../lib/system/time.ts";
import { saveMachine } from "../../lib/vm/_migrate.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";

/** How a migration goes on, once it was started towards a socket. */
interface Migrating {
  status: Record<string, unknown>;
  send?: (socket: string) => Promise<void>;
}

/** Saves a machine whose monitor answers so, and returns what it was asked. */
async function save({ status, send }: Migrating) {
  await using dir = await temporaryDir();
  const store = snapshotStore(join(dir.path, "machines"));
  await using staging = (await store.stage("a".repeat(64)))!;
  const asked: string[] = [];
  const answer = ([name, args]: Command) => {
    asked.push(name);
    if (name === "query-migrate") return status;
    if (name === "migrate") send?.(String(args!.uri).replace("unix:", ""));
    return {};
  };
  const qmp = {
    send: (...commands: Command[]) => Promise.resolve(commands.map(answer)),
  } as Qmp;
  const written = saveMachine(qmp, { dir: dir.path, state: staging.state })
    .then(() => Deno.readTextFile(staging.state));
  // Whoever still listens would hold the test.
  const failed = await written.then(() => undefined, (error) => error);
  return { asked, failed, text: failed ? undefined : await written };
}

Deno.test("a state is saved when all of it has come, though QEMU was done before", async () => {
  const { text } = await save({
    status: { status: "completed" },
    async send(socket) {
      using connection = await Deno.connect({
        transport: "unix",
        path: socket,
      });
      for (const part of ["devices, ", "and ", "memory"]) {
        await sleep(20);
        await connection.write(new TextEncoder().encode(part));
      }
    },
  });
  assertEquals(text, "devices, and memory");
});

Deno.test("a machine that QEMU cannot save runs on, and the reason is QEMU's", async () => {
  const { asked, failed } = await save({
    status: { status: "failed", "error-desc": "no space on the device" },
  });
  const { message } = await failure("guest_failed", () => {
    throw failed;
  });
  assertEquals(
    message,
    "QEMU cannot save the machine: no space on the device",
  );
  assertEquals(asked.at(-1), "cont");
});

Deno.test("a save that does not end is cancelled, and the machine runs on", async () => {
  const now = performance.now.bind(performance);
  let calls = 0;
  // Two minutes pass at the second look.
  performance.now = () => now() + (calls++ > 0 ? 121_000 : 0);
  try {
    const { asked, failed } = await save({ status: { status: "active" } });
    assertEquals(
      failed?.message,
      "QEMU cannot save the machine: it took longer than 120 s",
    );
    assertEquals(asked.slice(-2), ["migrate_cancel", "cont"]);
  } finally {
    performance.now = now;
  }
});
