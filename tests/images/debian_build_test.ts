import { assert, assertEquals } from "@std/assert";
import { inspectQcow2 } from "../../lib/image/qcow2.ts";
import { run } from "../../lib/system/process.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { debian, needsDebian } from "../support/guest.ts";

async function buildDebian(args: string[]) {
  const script = `${ROOT}/scripts/guest/debian.ts`;
  return await run(Deno.execPath(), {
    args: await denoArgs(["run", "-A", script, ...args]),
  });
}

Deno.test({
  name: "builds of Debian at the same time give one image, built once",
  ...needsDebian,
  async fn() {
    const builds = await Promise.all([
      debian(),
      buildDebian(["agent"]).then(({ stdout }) => stdout.trim()),
      buildDebian(["agent"]).then(({ stdout }) => stdout.trim()),
    ]);
    assertEquals(new Set(builds).size, 1, builds.join());
    const before = await Deno.stat(builds[0]);
    const again = await buildDebian(["agent"]);
    assertEquals(
      [again.code, again.stdout, again.stderr],
      [0, `${builds[0]}\n`, ""],
    );
    const after = await Deno.stat(builds[0]);
    assertEquals([after.ino, after.mtime], [before.ino, before.mtime]);
  },
});

Deno.test({
  name: "a Debian guest is small, whole, and has room to write",
  ...needsDebian,
  async fn() {
    const info = await inspectQcow2(await debian());
    assert(info.fileSize < 200 * 2 ** 20, `${info.fileSize} bytes`);
    assertEquals(info.virtualSize, 2 ** 31);
    assertEquals(info.backingFile, undefined);
  },
});

Deno.test("a wrong use of the Debian builder says what is right", async () => {
  for (const args of [[], ["debian"], ["agent", "a", "b"], ["--nope"]]) {
    const { code, stdout, stderr } = await buildDebian(args);
    assertEquals([code, stdout], [2, ""]);
    assert(stderr.includes("debian.ts agent|cloud|cloud-uefi|arm64"), stderr);
  }
});
