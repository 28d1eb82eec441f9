import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import {
  detachedVmRecordPath,
  hydrateAndPlanVm,
  runInVm,
} from "../../lib/run/workspace_vm.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { acquireFileLock } from "../../lib/system/lock.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { buildTestGuest, env, needsGuest } from "../support/guest.ts";
import { holdTimers } from "../support/timers.ts";

/** A manifest for an image, in a new workspace. */
async function manifestOf(dir: string, image: string) {
  await Deno.mkdir(join(dir, ".toolsmith"));
  const digest = await sha256OfChunks(readFileChunks(image));
  const fields = { name: "guest", qcow2: image, qcow2_sha256: digest };
  const text = JSON.stringify({ image: fields });
  const path = join(dir, ".toolsmith", "tools.json");
  await Deno.writeTextFile(path, text);
  return parseManifest(text, path);
}

Deno.test({
  name: "runInVm() counts the boot of its VM towards timeoutMs",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const manifest = await manifestOf(dir.path, await buildTestGuest());
    const timeoutMs = 123_456;
    using clocks = holdTimers(timeoutMs);
    const onEvent = ({ type }: ToolsmithEvent) => {
      if (type === "vm_boot") clocks.expire();
    };
    const error = await expectFailure(
      "timeout",
      () => runInVm(manifest, "true", { timeoutMs, vm: { env, onEvent } }),
    );
    assertEquals(error.message, "The command did not end within 123.456 s");
  },
});

Deno.test("runInVm() times out while another process locks the detached VM's record", async () => {
  await using dir = await temporaryDir();
  const image = join(dir.path, "image.qcow2");
  await Deno.writeTextFile(image, "never read");
  const manifest = await manifestOf(dir.path, image);
  const record = detachedVmRecordPath(dir.path);
  await Deno.writeTextFile(record, "{}");
  using _held = await acquireFileLock(`${record}.lock`);
  await expectFailure(
    "timeout",
    () => runInVm(manifest, "ls", { timeoutMs: 300 }),
  );
});

Deno.test("hydrateAndPlanVm() rejects an invalid TOOLSMITH_ACCEL before it fetches the image", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "tools.json");
  const image = { name: "guest", qcow2: "none", qcow2_sha256: "0".repeat(64) };
  const manifest = parseManifest(JSON.stringify({ image }), path);
  const plan = (accel: string) => {
    const env = new Map([["TOOLSMITH_ACCEL", accel]]);
    return () => hydrateAndPlanVm(manifest, { env });
  };
  await expectFailure("usage", plan("xen"));
  await expectFailure("source_not_found", plan("tcg"));
});
