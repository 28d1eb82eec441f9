import { assert, assertEquals } from "@std/assert";
import { readQcow2Header } from "../../lib/image/qcow2_header.ts";
import { runProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { buildDebianGuest, needsDebian } from "../support/guest.ts";

async function buildDebian(args: string[]) {
  const script = `${PROJECT_ROOT}/scripts/guest/debian.ts`;
  return await runProcess(Deno.execPath(), {
    args: await withImportMap(["run", "-A", script, ...args]),
  });
}

Deno.test({
  name:
    "debian.ts builds the same image once when several runs need it at once",
  ...needsDebian,
  async fn() {
    const builds = await Promise.all([
      buildDebianGuest(),
      buildDebian(["agent"]).then(({ stdout }) => stdout.trim()),
      buildDebian(["agent"]).then(({ stdout }) => stdout.trim()),
    ]);
    assertEquals(new Set(builds).size, 1, builds.join());
    const before = await Deno.stat(builds[0]);
    // It may say that it waits: other tests open this store at the same time.
    const again = await buildDebian(["agent"]);
    assertEquals(
      [again.code, again.stdout],
      [0, `${builds[0]}\n`],
      again.stderr,
    );
    const after = await Deno.stat(builds[0]);
    assertEquals([after.ino, after.mtime], [before.ino, before.mtime]);
  },
});

Deno.test({
  name: "debian.ts builds a small, self-contained image with a 2 GiB disk",
  ...needsDebian,
  async fn() {
    const info = await readQcow2Header(await buildDebianGuest());
    assert(info.fileSize < 250 * 2 ** 20, `${info.fileSize} bytes`);
    assertEquals(info.virtualSize, 2 ** 31);
    assertEquals(info.backingFile, undefined);
  },
});

Deno.test("debian.ts prints its usage for wrong arguments", async () => {
  for (const args of [[], ["debian"], ["agent", "a", "b"], ["--nope"]]) {
    const { code, stdout, stderr } = await buildDebian(args);
    assertEquals([code, stdout], [2, ""]);
    assert(stderr.includes("debian.ts agent|cloud|cloud-uefi|arm64"), stderr);
  }
});
