import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import {
  allocatedBytes,
  isFileIdentity,
  isSameFileIdentity,
  makeTemporaryDir,
  orIfDenied,
  orIfNotFound,
  readFileIdentity,
  removeTree,
  replaceFileAtomically,
  syncToDisk,
} from "../../lib/system/files.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { replaceMethod } from "../support/replace_method.ts";

Deno.test("isSameFileIdentity() returns false after a file is modified or replaced", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "file");
  await Deno.writeTextFile(path, "one");
  const before = await readFileIdentity(path);
  assert(before);
  assert(isSameFileIdentity(await readFileIdentity(path), before));

  await Deno.utime(path, new Date(), new Date(1000));
  assert(!isSameFileIdentity(await readFileIdentity(path), before));

  // The same bytes, size and time in another inode.
  const { mtime } = before!;
  await Deno.writeTextFile(`${path}.new`, "one");
  await Deno.rename(`${path}.new`, path);
  await Deno.utime(path, new Date(), new Date(mtime!));
  assert(!isSameFileIdentity(await readFileIdentity(path), before));
});

Deno.test("readFileIdentity() returns undefined for directories, symbolic links and missing files", async () => {
  await using dir = await temporaryDir();
  const target = join(dir.path, "target");
  await Deno.writeTextFile(target, "x");
  await Deno.symlink(target, join(dir.path, "link"));
  for (const name of ["", "link", "absent"]) {
    assertEquals(await readFileIdentity(join(dir.path, name)), undefined);
  }
  assert(isSameFileIdentity(undefined, undefined));
  assert(!isSameFileIdentity(await readFileIdentity(target), undefined));
});

Deno.test("isSameFileIdentity() compares every field, and isFileIdentity() rejects malformed values", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "file");
  await Deno.writeTextFile(path, "x");
  const before = await readFileIdentity(path);
  assert(before && isFileIdentity(before));
  for (const field of ["size", "mtime", "ctime", "inode"] as const) {
    assert(
      !isSameFileIdentity({ ...before, [field]: before[field]! + 1 }, before),
      field,
    );
    assert(!isFileIdentity({ ...before, [field]: "1" }), field);
    const { [field]: _, ...rest } = before;
    assert(!isFileIdentity(rest), field);
  }
  // Windows has no inodes.
  assert(isFileIdentity({ size: 1, mtime: null, ctime: null, inode: null }));
  for (const value of [null, undefined, "x", 1, [], {}]) {
    assert(!isFileIdentity(value), JSON.stringify(value));
  }
});

Deno.test("allocatedBytes() counts blocks of 512 bytes, up to the file size", async () => {
  await using dir = await temporaryDir();
  const stat = await Deno.stat(dir.path);
  const taken = (size: number, blocks: number | null) =>
    allocatedBytes({ ...stat, size, blocks });
  assertEquals(taken(1_000_000, 8), 4096);
  assertEquals(taken(100, 8), 100);
  assertEquals(taken(1_000_000, 0), 0);
  assertEquals(taken(1_000_000, null), 1_000_000);
});

Deno.test("syncToDisk() and removeTree() accept a file or a directory", async () => {
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

Deno.test("removeTree() removes a directory that another process fills meanwhile, unless that never ends", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "a");
  await Deno.mkdir(join(path, "b"), { recursive: true });
  const { remove } = Deno;
  for (const [fills, isRemoved] of [[Infinity, false], [3, true]] as const) {
    let left: number = fills;
    // As if a file was created between the removal of the others and of the directory.
    using _remove = replaceMethod(Deno, {
      remove: (path: string, options: Deno.RemoveOptions) =>
        remove(path, left-- > 0 ? {} : options),
    });
    if (isRemoved) await removeTree(path);
    else await assertRejects(() => removeTree(path), Error, "not empty");
  }
  assertEquals([...Deno.readDirSync(dir.path)], []);
});

Deno.test({
  name: "syncToDisk() throws when the file cannot be synced",
  ignore: Deno.build.os !== "linux",
  async fn() {
    // Special files cannot be synced (fsync(2), EINVAL).
    for (const path of ["/dev/null", "/proc"]) {
      await assertRejects(() => syncToDisk(path), Error, "os error 22");
    }
  },
});

Deno.test("orIfNotFound() returns undefined only for NotFound, orIfDenied() only for PermissionDenied", async () => {
  const { NotFound, PermissionDenied } = Deno.errors;
  for (
    const [take, taken, other] of [
      [orIfNotFound, NotFound, PermissionDenied],
      [orIfDenied, PermissionDenied, NotFound],
    ] as const
  ) {
    assertEquals(await take(Promise.reject(new taken("no"))), undefined);
    assertEquals(await take(Promise.resolve("some")), "some");
    await assertRejects(() => take(Promise.reject(new other("no"))), other);
  }
});

Deno.test("makeTemporaryDir() names TMPDIR (on Windows TEMP) in the hint of each error", async () => {
  const cases: [Error, "usage" | "disk_full", string][] = [
    [new Deno.errors.NotFound("No such file (os error 2)"), "usage", "exists"],
    [new Error("No space left (os error 28)"), "disk_full", "more free space"],
  ];
  for (const [cause, code, words] of cases) {
    Object.assign(cause, { code: code === "usage" ? "ENOENT" : "ENOSPC" });
    using _system = replaceMethod(Deno, {
      makeTempDir: () => Promise.reject(cause),
    });
    const error = await expectFailure(
      code,
      () => makeTemporaryDir("toolsmith-"),
    );
    const variable = Deno.build.os === "windows" ? "TEMP" : "TMPDIR";
    assertStringIncludes(error.hint ?? "", `set ${variable} to a directory`);
    assertStringIncludes(error.hint ?? "", words);
  }
});

Deno.test("replaceFileAtomically() replaces a symbolic link, and leaves the link's target unchanged", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "record");
  const victim = join(dir.path, "victim");
  await Deno.writeTextFile(victim, "mine");
  for (const link of [Deno.symlink, Deno.link]) {
    await link(victim, path);
    await replaceFileAtomically(path, "new");
    assertEquals(await Deno.readTextFile(path), "new");
    assertEquals((await Deno.lstat(path)).isSymlink, false);
    assertEquals(await Deno.readTextFile(victim), "mine");
    await Deno.remove(path);
  }
  // A failure leaves no temporary file.
  await Deno.mkdir(join(path, "in the way"), { recursive: true });
  await assertRejects(() => replaceFileAtomically(path, "new"));
  const names = [...Deno.readDirSync(dir.path)].map(({ name }) => name);
  assertEquals(names.sort(), ["record", "victim"]);
});

Deno.test({
  name:
    "replaceFileAtomically() applies the requested mode, with or without the umask",
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
          [{ mode: 0o666, ignoreUmask: true }, 0o666],
        ] as const
      ) {
        await replaceFileAtomically(path, "x", options);
        assertEquals((await Deno.stat(path)).mode! & 0o777, expected);
      }
    } finally {
      Deno.umask(umask);
    }
  },
});
