/**
 * Tests `toolsmith boot` with a disk that only has a boot sector.
 */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { sleep } from "../../lib/system/time.ts";
import { GREETING, makeBootSector } from "../support/boot_sector.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { env } from "../support/guest.ts";
import { performCommand, recordedIo } from "../support/recorded_io.ts";
import { requires } from "../support/parts.ts";
import { watchedSignal } from "../support/signals.ts";

/** A workspace whose boot sector powers off in this way. */
async function workspace(ends: Parameters<typeof makeBootSector>[1]) {
  const dir = await temporaryDir();
  const path = join(dir.path, "sector.qcow2");
  await makeBootSector(path, ends);
  const qcow2_sha256 = await sha256OfChunks(readFileChunks(path));
  const image = { name: "sector", qcow2: path, qcow2_sha256 };
  const manifest = join(dir.path, "tools.json");
  await Deno.writeTextFile(manifest, JSON.stringify({ image }));
  // The boot sector has no agent to wait for.
  const flags = [
    "--arch",
    "amd64",
    "--firmware",
    "bios",
    "--no-save",
    "--boot-timeout",
    "1",
  ];
  const args = ["boot", "--manifest", manifest, ...flags];
  return { ...dir, args: [...args, "--cache", join(dir.path, "cache")] };
}

/** Without KVM there is a warning about emulation too. */
function isReadyWarning(event: ToolsmithEvent): boolean {
  return event.type === "warning" && !event.message.includes("emulation");
}

const needsQemu = requires("qemu", "qemuImg");

Deno.test({
  name:
    "boot attaches the guest's console to the terminal until the guest ends",
  ...needsQemu,
  async fn() {
    await using work = await workspace("atKey");
    const { signal, listeners } = watchedSignal();
    const up = Promise.withResolvers<void>();
    const keys = new ReadableStream<Uint8Array<ArrayBuffer>>({
      async pull(controller) {
        await up.promise;
        // The firmware would consume the key.
        while (!recorded.output().includes(GREETING)) await sleep(50);
        controller.enqueue(new Uint8Array([13]));
        controller.close();
      },
    });
    const recorded = recordedIo({
      ...{ env, signal, console: keys },
      onEvent: (event) => isReadyWarning(event) && up.resolve(),
    });
    assertEquals(await performCommand([...work.args, "--json"], recorded), 0);
    assertStringIncludes(recorded.output(), GREETING);
    const fields = { outcome: "stopped" };
    assertEquals(recorded.results, [{ json: true, fields, text: "" }]);
    assertEquals([recorded.consoles, listeners()], [[false], 0]);
  },
});

Deno.test({
  name: "boot powers the guest down on Ctrl-C",
  ...needsQemu,
  async fn() {
    await using work = await workspace("atPowerButton");
    const { signal, abort, added } = watchedSignal();
    const up = Promise.withResolvers<number>();
    const typed = new ReadableStream<Uint8Array<ArrayBuffer>>();
    const recorded = recordedIo({
      ...{ env, signal, console: typed },
      onEvent: (event) => isReadyWarning(event) && up.resolve(added()),
    });
    const pressed = up.promise.then(async (before) => {
      // There is no agent: wait until boot listens to the abort signal.
      while (added() === before) await sleep(20);
      while (!recorded.output().includes(GREETING)) await sleep(20);
      abort();
    });
    assertEquals(await performCommand(work.args, recorded), 0);
    assertEquals(recorded.results[0].fields, { outcome: "stopped" });
    await pressed;
    const end = recorded.events.find(({ type }) => type === "shutdown");
    assertEquals(end?.type === "shutdown" && end.how, "powered_down");
  },
});

Deno.test({
  name:
    "boot --detach kills a guest that does not become ready and leaves no VM record",
  ...needsQemu,
  async fn() {
    await using work = await workspace("atPowerButton");
    const recorded = recordedIo({ env });
    const line = [...work.args, "--detach"];
    await expectFailure(
      "guest_not_ready",
      () => performCommand(line, recorded),
    );
    const names = [...Deno.readDirSync(work.path)].map(({ name }) => name);
    assertEquals(names.includes(".toolsmith"), false, names.join());
  },
});
