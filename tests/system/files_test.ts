import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import {
  absentAs,
  bytesOnDisk,
  fingerprint,
  isFingerprint,
  isSame,
  removeTree,
  replaceFile,
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

Deno.test("a change of any part of a fingerprint shows, and what is no fingerprint is told", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "file");
  await Deno.writeTextFile(path, "x");
  const before = await fingerprint(path);
  assert(before && isFingerprint(before));
  for (const field of ["size", "mtime", "ctime", "inode"] as const) {
    assert(!isSame({ ...before, [field]: before[field]! + 1 }, before), field);
    assert(!isFingerprint({ ...before, [field]: "1" }), field);
    const { [field]: _, ...rest } = before;
    assert(!isFingerprint(rest), field);
  }
  // Windows has no inodes.
  assert(isFingerprint({ size: 1, mtime: null, ctime: null, inode: null }));
  for (const value of [null, undefined, "x", 1, [], {}]) {
    assert(!isFingerprint(value), JSON.stringify(value));
  }
});

Deno.test("a file takes its blocks of 512 bytes on the disk, and never more than its size", async () => {
  await using dir = await temporaryDir();
  const stat = await Deno.stat(dir.path);
  const taken = (size: number, blocks: number | null) =>
    bytesOnDisk({ ...stat, size, blocks });
  assertEquals(taken(1_000_000, 8), 4096);
  assertEquals(taken(100, 8), 100);
  assertEquals(taken(1_000_000, 0), 0);
  assertEquals(taken(1_000_000, null), 1_000_000);
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

Deno.test({
  name: "what cannot be synced is an error, and not passed over",
  ignore: Deno.build.os !== "linux",
  async fn() {
    // Neither has a disk below it (fsync(2), EINVAL).
    for (const path of ["/dev/null", "/proc"]) {
      await assertRejects(() => syncToDisk(path), Error, "os error 22");
    }
  },
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

Deno.test("a file is replaced whole: what is there follows no link and keeps its other names", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "record");
  const victim = join(dir.path, "victim");
  await Deno.writeTextFile(victim, "mine");
  for (const link of [Deno.symlink, Deno.link]) {
    await link(victim, path);
    await replaceFile(path, "new");
    assertEquals(await Deno.readTextFile(path), "new");
    assertEquals((await Deno.lstat(path)).isSymlink, false);
    assertEquals(await Deno.readTextFile(victim), "mine");
    await Deno.remove(path);
  }
  // Nothing is left of a failure, either.
  await Deno.mkdir(join(path, "in the way"), { recursive: true });
  await assertRejects(() => replaceFile(path, "new"));
  const names = [...Deno.readDirSync(dir.path)].map(({ name }) => name);
  assertEquals(names.sort(), ["record", "victim"]);
});

Deno.test({
  name:
    "a replaced file has the permissions that were asked for, less the umask or exactly",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const path = join(dir.path, "record");
    const umask = Deno.umask(0o027);
    try {
      for (
        const [options, expected] of [
          [{}, 0o640],
          [{ mode: 0o600 }, 0o600],
          [{ mode: 0o666, exact: true }, 0o666],
        ] as const
      ) {
        await replaceFile(path, "x", options);
        assertEquals((await Deno.stat(path)).mode! & 0o777, expected);
      }
    } finally {
      Deno.umask(umask);
    }
  },
});
