/**
 * Saving a VM with a fake QMP connection, for answers that a real QEMU rarely gives.
 */
import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import type { QmpCommand, QmpConnection } from "../../lib/qemu/qmp.ts";
import { sleep } from "../../lib/system/time.ts";
import { pauseAndSaveVm } from "../../lib/vm/_snapshot_qemu.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { installMovingClock } from "../support/timers.ts";

/** How QEMU plays a migration to a socket. */
interface Migrating {
  status: Record<string, unknown>;
  send?: (socket: string) => Promise<void>;
}

/** Saves a VM; returns the QMP commands, the error and the saved text. */
async function save(migrating: Migrating) {
  await using dir = await temporaryDir();
  const store = snapshotStore(join(dir.path, "machines"));
  await using staging = (await store.createStaging("a".repeat(64)))!;
  const asked: string[] = [];
  const answer = ([name, args]: QmpCommand) => {
    asked.push(name);
    if (name === "query-migrate") return migrating.status;
    if (name === "migrate") {
      migrating.send?.(String(args!.uri).replace("unix:", ""));
    }
    return {};
  };
  const qmp = {
    execute: (...commands: QmpCommand[]) =>
      Promise.resolve(commands.map(answer)),
  } as QmpConnection;
  const written = pauseAndSaveVm({ qmp, dir: dir.path }, staging.state)
    .then(() => Deno.readTextFile(staging.state));
  // An open listener would make the test hang.
  const failed = await written.then(() => undefined, (error) => error);
  return { asked, failed, text: failed ? undefined : await written };
}

Deno.test("pauseAndSaveVm() waits for all bytes after QEMU reports completion", async () => {
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

Deno.test("pauseAndSaveVm() resumes the guest and throws QEMU's reason when migration fails", async () => {
  const { asked, failed } = await save({
    status: { status: "failed", "error-desc": "no space on the device" },
  });
  const { message } = await expectFailure("guest_failed", () => {
    throw failed;
  });
  assertEquals(
    message,
    "QEMU cannot save the VM: no space on the device",
  );
  assertEquals(asked.at(-1), "cont");
});

Deno.test("pauseAndSaveVm() cancels a save after 120 s and resumes the guest", async () => {
  using clock = installMovingClock();
  const { asked, failed } = await save({
    get status() {
      clock.pass(121_000);
      return { status: "active" };
    },
  });
  assertEquals(
    failed?.message,
    "QEMU cannot save the VM: not finished within 120 s",
  );
  assertEquals(asked.slice(-2), ["migrate_cancel", "cont"]);
});
