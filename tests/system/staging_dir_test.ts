import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import {
  createLockedStagingDir,
  removeUnlockedStagingDir,
  tryFileLock,
} from "../../lib/system/lock.ts";
import { namesIn, temporaryDir } from "../support/directory.ts";

Deno.test("createLockedStagingDir() creates a private directory; disposing removes the directory and releases the lock", async () => {
  await using dir = await temporaryDir();
  const [path, lock] = [join(dir.path, "staging"), join(dir.path, "lock")];
  const staging = await createLockedStagingDir(path, lock);
  await Deno.writeTextFile(join(staging!.path, "x"), "x");
  if (Deno.build.os !== "windows") {
    assertEquals((await Deno.stat(path)).mode! & 0o777, 0o700);
  }
  assertEquals(await createLockedStagingDir(`${path}2`, lock), undefined);
  assertEquals(await removeUnlockedStagingDir(path, lock), false);
  assertEquals(await namesIn(dir.path), ["lock", "staging"]);
  await staging![Symbol.asyncDispose]();
  assertEquals(await namesIn(dir.path), ["lock"]);
  // Disposing twice does not remove the next owner's directory.
  await using _next = await createLockedStagingDir(path, lock);
  await staging![Symbol.asyncDispose]();
  assertEquals(await tryFileLock(lock), undefined);
  assertEquals(await namesIn(dir.path), ["lock", "staging"]);
});

Deno.test("createLockedStagingDir() releases its lock when the directory cannot be created", async () => {
  await using dir = await temporaryDir();
  const [path, lock] = [join(dir.path, "staging"), join(dir.path, "lock")];
  await Deno.writeTextFile(path, "in the way");
  await assertRejects(
    () => createLockedStagingDir(path, lock),
    Deno.errors.AlreadyExists,
  );
  using free = await tryFileLock(lock);
  assert(free);
});

Deno.test("removeUnlockedStagingDir() removes a directory whose lock is free", async () => {
  await using dir = await temporaryDir();
  const [path, lock] = [join(dir.path, "staging"), join(dir.path, "lock")];
  await Deno.mkdir(join(path, "deep"), { recursive: true });
  assertEquals(await removeUnlockedStagingDir(path, lock), true);
  assertEquals(await removeUnlockedStagingDir(path, lock), true);
  assertEquals(await namesIn(dir.path), ["lock"]);
});
