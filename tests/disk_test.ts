import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { freeBytes, requireSpace } from "../lib/disk.ts";
import { failure } from "./_failure.ts";
import { temporaryFolder } from "./_folder.ts";
import { runScript } from "./_script.ts";

Deno.test("free space is a number of bytes, and enough for a little", async () => {
  await using folder = await temporaryFolder();
  const free = await freeBytes(folder.path);
  assert(free !== undefined && Number.isInteger(free) && free > 0);
  await requireSpace(folder.path, 1);
});

Deno.test("what does not fit is refused before it begins, with both figures", async () => {
  await using folder = await temporaryFolder();
  const bytes = 2 ** 60;
  const error = await failure(
    "disk_full",
    () => requireSpace(folder.path, bytes),
  );
  assertStringIncludes(error.message, folder.path);
  assertStringIncludes(error.message, `${bytes} bytes are needed`);
  assert(/, \d+ are free$/.test(error.message), error.message);
  assertStringIncludes(error.hint!, "TOOLSMITH_CACHE=DIR");
});

Deno.test("where space cannot be told nothing is refused", async () => {
  await using folder = await temporaryFolder();
  assertEquals(await freeBytes(`${folder.path}/none`), undefined);
  await requireSpace(`${folder.path}/none`, 2 ** 60);
});

Deno.test("without the permission to ask nothing is refused", async () => {
  await using folder = await temporaryFolder();
  const said = await runScript(
    `${folder.path}/space.ts`,
    `import { requireSpace } from "/lib/disk.ts";
     await requireSpace(Deno.args[0], 2 ** 60);
     console.log("fine");`,
    { args: [folder.path], permissions: ["--allow-read"] },
  );
  assertEquals(said, "fine\n");
});
