import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { freeBytes, requireSpace } from "../../lib/system/free_space.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { runScript } from "../support/script.ts";

Deno.test("free space is a number of bytes, and enough for a little", async () => {
  await using dir = await temporaryDir();
  const free = await freeBytes(dir.path);
  assert(free !== undefined && Number.isInteger(free) && free > 0);
  await requireSpace(dir.path, 1);
});

Deno.test("what does not fit is refused before it begins, with both figures", async () => {
  await using dir = await temporaryDir();
  const bytes = 2 ** 60;
  const error = await failure(
    "disk_full",
    () => requireSpace(dir.path, bytes),
  );
  assertStringIncludes(error.message, dir.path);
  assertStringIncludes(error.message, `${bytes} bytes are needed`);
  assert(/, \d+ are free$/.test(error.message), error.message);
  assertStringIncludes(error.hint!, "TOOLSMITH_CACHE=DIR");
});

Deno.test({
  name: "8 MiB are left free, to the byte",
  ignore: Deno.build.os !== "linux",
  async fn() {
    // It has no room at all: what is asked for is taken off what is left free.
    const [none, reserve] = ["/proc", 8 * 1024 * 1024];
    assertEquals(await freeBytes(none), 0);
    await requireSpace(none, -reserve);
    await failure("disk_full", () => requireSpace(none, 1 - reserve));
  },
});

Deno.test("where space cannot be told nothing is refused", async () => {
  await using dir = await temporaryDir();
  assertEquals(await freeBytes(`${dir.path}/none`), undefined);
  await requireSpace(`${dir.path}/none`, 2 ** 60);
});

Deno.test("without the permission to ask nothing is refused", async () => {
  await using dir = await temporaryDir();
  const said = await runScript(
    `${dir.path}/space.ts`,
    `import { requireSpace } from "/lib/system/free_space.ts";
     await requireSpace(Deno.args[0], 2 ** 60);
     console.log("fine");`,
    { args: [dir.path], permissions: ["--allow-read"] },
  );
  assertEquals(said, "fine\n");
});
