import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  assertFreeSpace,
  readFreeDiskBytes,
} from "../../lib/system/free_space.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { runScript } from "../support/script.ts";

Deno.test("assertFreeSpace() accepts a small file, and readFreeDiskBytes() returns a byte count", async () => {
  await using dir = await temporaryDir();
  const free = await readFreeDiskBytes(dir.path);
  assert(free !== undefined && Number.isInteger(free) && free > 0);
  await assertFreeSpace(dir.path, 1);
});

Deno.test("assertFreeSpace() reports needed and free bytes when the disk is too small", async () => {
  await using dir = await temporaryDir();
  const bytes = 2 ** 60;
  const error = await expectFailure(
    "disk_full",
    () => assertFreeSpace(dir.path, bytes),
  );
  assertStringIncludes(error.message, dir.path);
  assertStringIncludes(error.message, `${bytes} bytes and 8 MiB spare needed`);
  assert(/, \d+ free$/.test(error.message), error.message);
  assertStringIncludes(error.hint!, "TOOLSMITH_CACHE=DIR");
});

Deno.test({
  name: "assertFreeSpace() keeps exactly 8 MiB in reserve",
  ignore: Deno.build.os !== "linux",
  async fn() {
    // /proc has no free space: a negative size tests the reserve alone.
    const [none, reserve] = ["/proc", 8 * 1024 * 1024];
    assertEquals(await readFreeDiskBytes(none), 0);
    await assertFreeSpace(none, -reserve);
    await expectFailure("disk_full", () => assertFreeSpace(none, 1 - reserve));
  },
});

Deno.test("assertFreeSpace() passes when the free space is unknown", async () => {
  await using dir = await temporaryDir();
  assertEquals(await readFreeDiskBytes(`${dir.path}/none`), undefined);
  await assertFreeSpace(`${dir.path}/none`, 2 ** 60);
});

Deno.test("assertFreeSpace() passes without the statfs permission", async () => {
  await using dir = await temporaryDir();
  const said = await runScript(
    `${dir.path}/space.ts`,
    `import { assertFreeSpace } from "/lib/system/free_space.ts";
     await assertFreeSpace(Deno.args[0], 2 ** 60);
     console.log("fine");`,
    { args: [dir.path], permissions: ["--allow-read"] },
  );
  assertEquals(said, "fine\n");
});
