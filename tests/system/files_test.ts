import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import {
  absentAs,
  fingerprint,
  isSame,
  removeTree,
  syncToDisk,
} from "../../lib/system/files.ts";
import { temporaryDir } from "../support/directory.ts";

Deno.test("a file that was written, replaced or cut is not the same", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "file");
  await Deno.writeTextFile(path, "one");
  const before = await fingerprint(path);
  assert(before);
  assert(isSame(await fingerprint(path), before));

  await Deno.utime(path, new Date(), new Date(1000));
  assert(!isSame(await fingerprint(path), before));

  // The same bytes, size and time in another inode.
  const { mtime } = before!;
  await Deno.writeTextFile(`${path}.new`, "one");
  await Deno.rename(`${path}.new`, path);
  await Deno.utime(path, new Date(), new Date(mtime!));
  assert(!isSame(await fingerprint(path), before));
});

Deno.test("what is no plain file has no fingerprint", async () => {
  await using dir = await temporaryDir();
  const target = join(dir.path, "target");
  await Deno.writeTextFile(target, "x");
  await Deno.symlink(target, join(dir.path, "link"));
  for (const name of ["", "link", "absent"]) {
    assertEquals(await fingerprint(join(dir.path, name)), undefined);
  }
  assert(isSame(undefined, undefined));
  assert(!isSame(await fingerprint(target), undefined));
});

Deno.test("files and directories can be synced, and removed with all they hold", async () => {
  await using dir = await temporaryDir();
  const inner = join(dir.path, "a/b");
  await Deno.mkdir(inner, { recursive: true });
  await Deno.writeTextFile(join(inner, "c"), "x");
  await syncToDisk(join(inner, "c"));
  await syncToDisk(inner);
  await removeTree(join(dir.path, "a"));
  await removeTree(join(dir.path, "a"));
  assertEquals([...Deno.readDirSync(dir.path)], []);
});

Deno.test("only what is missing is taken for a value", async () => {
  const missing = Promise.reject(new Deno.errors.NotFound("no"));
  assertEquals(await absentAs("none", missing), "none");
  assertEquals(await absentAs("none", Promise.resolve("some")), "some");
  const refused = Promise.reject(new Deno.errors.PermissionDenied("no"));
  await assertRejects(
    () => absentAs("none", refused),
    Deno.errors.PermissionDenied,
  );
});
