/**
 * `toolsmith boot`, with a disk that has one sector to boot.
 */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { sleep } from "../../lib/system/time.ts";
import { GREETING, makeBootSector } from "../support/boot_sector.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { env } from "../support/guest.ts";
import { perform, recordedIo } from "../support/io.ts";
import { needs } from "../support/parts.ts";
import { watchedSignal } from "../support/signals.ts";

/** A workspace whose image ends in this way. */
async function workspace(ends: Parameters<typeof makeBootSector>[1]) {
  const dir = await temporaryDir();
  const path = join(dir.path, "sector.qcow2");
  await makeBootSector(path, ends);
  const qcow2_sha256 = await sha256(fileChunks(path));
  const image = { name: "sector", qcow2: path, qcow2_sha256 };
  const manifest = join(dir.path, "tools.json");
  await Deno.writeTextFile(manifest, JSON.stringify({ image }));
  // It has no agent to wait for.
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

/** Where there is no KVM, that is a warning, too. */
function saysThatItIsUp(event: ToolsmithEvent): boolean {
  return event.type === "warning" && !event.message.includes("emulating");
}

const needsQemu = needs("qemu", "qemuImg");

Deno.test({
  name: "boot puts the guest's console on the terminal until the guest ends",
  ...needsQemu,
  async fn() {
    await using work = await workspace("atKey");
    const { signal, listeners } = watchedSignal();
    const up = Promise.withResolvers<void>();
    const keys = new ReadableStream<Uint8Array>({
      async pull(controller) {
        await up.promise;
        // The firmware would take it.
        while (!recorded.output().includes(GREETING)) await sleep(50);
        controller.enqueue(new Uint8Array([13]));
        controller.close();
      },
    });
    const recorded = recordedIo({
      ...{ env, signal, console: keys },
      onEvent: (event) => saysThatItIsUp(event) && up.resolve(),
    });
    assertEquals(await perform([...work.args, "--json"], recorded), 0);
    assertStringIncludes(recorded.output(), GREETING);
    const fields = { outcome: "stopped" };
    assertEquals(recorded.results, [{ json: true, fields, text: "" }]);
    assertEquals([recorded.consoles, listeners()], [[false], 0]);
  },
});

Deno.test({
  name: "Ctrl-C presses the power button of a guest that boot has started",
  ...needsQemu,
  async fn() {
    await using work = await workspace("atPowerButton");
    const { signal, abort } = watchedSignal();
    const up = Promise.withResolvers<void>();
    const typed = new ReadableStream<Uint8Array>();
    const recorded = recordedIo({
      ...{ env, signal, console: typed },
      onEvent: (event) => saysThatItIsUp(event) && up.resolve(),
    });
    const pressed = up.promise.then(async () => {
      while (!recorded.output().includes(GREETING)) await sleep(50);
      // Without an agent, nothing tells that the machine is the console's alone.
      await sleep(1000);
      abort();
    });
    assertEquals(await perform(work.args, recorded), 0);
    assertEquals(recorded.results[0].fields, { outcome: "stopped" });
    await pressed;
    const end = recorded.events.find(({ type }) => type === "shutdown");
    assertEquals(end?.type === "shutdown" && end.how, "powered_down");
  },
});

Deno.test({
  name:
    "boot --detach leaves no guest that does not get ready, and no record of it",
  ...needsQemu,
  async fn() {
    await using work = await workspace("atPowerButton");
    const recorded = recordedIo({ env });
    const line = [...work.args, "--detach"];
    await failure("guest_not_ready", () => perform(line, recorded));
    const names = [...Deno.readDirSync(work.path)].map(({ name }) => name);
    assertEquals(names.includes(".toolsmith"), false, names.join());
  },
});
