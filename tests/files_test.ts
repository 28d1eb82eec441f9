import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import {
  absentAs,
  fingerprint,
  isSame,
  removeTree,
  syncToDisk,
} from "../lib/files.ts";
import { temporaryFolder } from "./_folder.ts";

Deno.test("a file that was written, replaced or cut is not the same", async () => {
  await using folder = await temporaryFolder();
  const path = join(folder.path, "file");
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
  await using folder = await temporaryFolder();
  const target = join(folder.path, "target");
  await Deno.writeTextFile(target, "x");
  await Deno.symlink(target, join(folder.path, "link"));
  for (const name of ["", "link", "absent"]) {
    assertEquals(await fingerprint(join(folder.path, name)), undefined);
  }
  assert(isSame(undefined, undefined));
  assert(!isSame(await fingerprint(target), undefined));
});

Deno.test("files and folders can be synced, and removed with all they hold", async () => {
  await using folder = await temporaryFolder();
  const inner = join(folder.path, "a/b");
  await Deno.mkdir(inner, { recursive: true });
  await Deno.writeTextFile(join(inner, "c"), "x");
  await syncToDisk(join(inner, "c"));
  await syncToDisk(inner);
  await removeTree(join(folder.path, "a"));
  await removeTree(join(folder.path, "a"));
  assertEquals([...Deno.readDirSync(folder.path)], []);
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
