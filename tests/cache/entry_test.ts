import { assert, assertEquals } from "@std/assert";
import { dirname, join } from "@std/path";
import {
  cacheEntryHandle,
  type CacheKey,
  resolveCacheDir,
  toCacheWriteError,
} from "../../lib/cache/entry.ts";
import { readFileIdentity } from "../../lib/system/files.ts";
import { runProcess } from "../../lib/system/process.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { namesIn, temporaryDir } from "../support/directory.ts";
import { A, B, testWithCache } from "../support/images.ts";
import { waitForNextChangeTime } from "../support/change_time.ts";
import { requires } from "../support/parts.ts";
import { replaceMethod } from "../support/replace_method.ts";

const SOURCE = "oci://ghcr.io/owner/repo:1.0";

/** Adds an image to the cache, as hydrate does. */
async function put(key: CacheKey, text: string, name = "image.qcow2") {
  using held = await cacheEntryHandle(key).lock();
  await using staging = await held.createOrResumeStaging();
  const path = join(staging.dir, name);
  await Deno.writeTextFile(path, text);
  const hashedFile = (await readFileIdentity(path))!;
  return await staging.commit({
    path,
    fileName: name,
    source: SOURCE,
    hashedFile,
  });
}

Deno.test("resolveCacheDir() returns the cache option, else TOOLSMITH_CACHE, else .toolsmith/cache", async () => {
  const find = (cache: string | undefined, variable: string) =>
    resolveCacheDir("/srv", {
      cache,
      env: new Map([["TOOLSMITH_CACHE", variable]]),
    });
  assertEquals(await find(undefined, ""), "/srv/.toolsmith/cache");
  assertEquals(await find(undefined, "/var/cache"), "/var/cache");
  assertEquals(await find("/named", "/var/cache"), "/named");
});

testWithCache(
  "lookUpImage() finds a committed image, which is trusted and has mode 0444",
  async (key) => {
    const path = await put(key, "image");
    assertEquals(path, join(key.cache, "demo", A, "image.qcow2"));
    const found = await cacheEntryHandle(key).lookUpImage();
    assertEquals(found?.path, path);
    assertEquals([found?.bytes, found?.trusted], [5, true]);
    assertEquals(found?.verificationRecord?.source, SOURCE);
    assertEquals(found?.verificationRecord?.digest, `sha256:${A}`);
    const { mode } = await Deno.stat(path);
    if (mode !== null) assertEquals(mode & 0o777, 0o444);
    assertEquals(await namesIn(cacheEntryHandle(key).dir), [
      "image.qcow2",
      "verified.json",
    ]);
    assertEquals(await namesIn(join(key.cache, "demo")), [`.${A}.lock`, A]);
  },
);

testWithCache(
  "ImageStaging.commit() rejects a file that was replaced after hashing",
  async (key) => {
    {
      using held = await cacheEntryHandle(key).lock();
      await using staging = await held.createOrResumeStaging();
      const path = join(staging.dir, "image.qcow2");
      await Deno.writeTextFile(path, "image");
      const hashedFile = (await readFileIdentity(path))!;
      await Deno.writeTextFile(`${path}.new`, "IMAGE");
      await Deno.rename(`${path}.new`, path);
      const file = {
        path,
        fileName: "image.qcow2",
        source: SOURCE,
        hashedFile,
      };
      await expectFailure("checksum_mismatch", () => staging.commit(file));
    }
    assertEquals(await cacheEntryHandle(key).lookUpImage(), undefined);
    assertEquals(await namesIn(join(key.cache, "demo")), [`.${A}.lock`]);
  },
);

testWithCache(
  "lookUpImage() returns undefined for a missing or empty entry",
  async (key) => {
    assertEquals(await cacheEntryHandle(key).lookUpImage(), undefined);
    await Deno.mkdir(cacheEntryHandle(key).dir, { recursive: true });
    assertEquals(await cacheEntryHandle(key).lookUpImage(), undefined);
    // A verification record without its image.
    await Deno.writeTextFile(
      join(cacheEntryHandle(key).dir, "verified.json"),
      '{"file":"image.qcow2"}',
    );
    assertEquals(await cacheEntryHandle(key).lookUpImage(), undefined);
  },
);

testWithCache(
  "ImageStaging.commit() replaces an existing entry as a whole",
  async (key) => {
    await put(key, "old", "old.qcow2");
    const path = await put(key, "new");
    assertEquals(await Deno.readTextFile(path), "new");
    assertEquals(await namesIn(cacheEntryHandle(key).dir), [
      "image.qcow2",
      "verified.json",
    ]);
    assertEquals(await namesIn(join(key.cache, "demo")), [`.${A}.lock`, A]);
  },
);

testWithCache(
  "ImageStaging.commit() keeps an open image readable when replacing its entry",
  async (key) => {
    using reader = await Deno.open(await put(key, "old"));
    await put(key, "new");
    assertEquals(await new Response(reader.readable).text(), "old");
  },
);

testWithCache(
  "ImageStaging.commit() replaces a file at the entry's path",
  async (key) => {
    await Deno.mkdir(dirname(cacheEntryHandle(key).dir), { recursive: true });
    await Deno.writeTextFile(cacheEntryHandle(key).dir, "in the way");
    assertEquals(await cacheEntryHandle(key).lookUpImage(), undefined);
    await put(key, "image");
    assert((await cacheEntryHandle(key).lookUpImage())?.trusted);
  },
);

/** Ways to change an image or its record after verification. */
const TOUCHES: Record<string, (path: string) => Promise<void>> = {
  async "other bytes and restored times"(path) {
    await waitForNextChangeTime(dirname(path));
    const { atime, mtime } = await Deno.stat(path);
    await Deno.chmod(path, 0o644);
    await Deno.writeTextFile(path, "IMAGE");
    await Deno.chmod(path, 0o444);
    await Deno.utime(path, atime!, mtime!);
  },
  async "appended bytes"(path) {
    await Deno.chmod(path, 0o644);
    await Deno.writeTextFile(path, "!", { append: true });
  },
  async "a replaced file"(path) {
    await Deno.writeTextFile(`${path}.new`, "IMAGE");
    await Deno.rename(`${path}.new`, path);
  },
  async "another image's verification record"(path) {
    const record = join(dirname(path), "verified.json");
    const text = await Deno.readTextFile(record);
    await Deno.writeTextFile(record, text.replaceAll(A, B));
  },
  async "a malformed verification record"(path) {
    await Deno.writeTextFile(join(dirname(path), "verified.json"), "{");
  },
  async "no verification record"(path) {
    await Deno.remove(join(dirname(path), "verified.json"));
  },
};

for (const [name, change] of Object.entries(TOUCHES)) {
  testWithCache(
    `lookUpImage() does not trust an image with ${name} until it is verified again`,
    async (key) => {
      const path = await put(key, "image");
      await change(path);
      const found = await cacheEntryHandle(key).lookUpImage();
      assertEquals([found?.path, found?.trusted], [path, false]);
      {
        using held = await cacheEntryHandle(key).lock();
        await held.renewVerificationRecord(found!);
      }
      assertEquals((await cacheEntryHandle(key).lookUpImage())?.trusted, true);
    },
  );
}

testWithCache(
  "lookUpImage() ignores a verification record that names a file outside the entry",
  async (key) => {
    await put(key, "image");
    const record = join(cacheEntryHandle(key).dir, "verified.json");
    for (const file of ["..", ".", "../x.qcow2", "/etc/passwd", "", 7, null]) {
      await Deno.writeTextFile(record, JSON.stringify({ file }));
      const found = await cacheEntryHandle(key).lookUpImage();
      assertEquals(
        found?.path,
        join(cacheEntryHandle(key).dir, "image.qcow2"),
        `${file}`,
      );
      assert(!found?.trusted);
    }
  },
);

testWithCache(
  "lookUpImage() ignores a link or directory in place of the image",
  async (key) => {
    const path = await put(key, "image");
    const elsewhere = join(key.cache, "elsewhere");
    await Deno.rename(path, elsewhere);
    await Deno.symlink(elsewhere, path);
    assertEquals(await cacheEntryHandle(key).lookUpImage(), undefined);
    await Deno.remove(path);
    await Deno.mkdir(path);
    assertEquals(await cacheEntryHandle(key).lookUpImage(), undefined);
    await put(key, "image");
    assert((await cacheEntryHandle(key).lookUpImage())?.trusted);
  },
);

testWithCache(
  "markUsedAndCleanUp() updates the entry's time, and ignores a missing cache",
  async (key) => {
    await cacheEntryHandle(key).markUsedAndCleanUp();
    await put(key, "image");
    await Deno.utime(cacheEntryHandle(key).dir, 0, 0);
    await cacheEntryHandle(key).markUsedAndCleanUp();
    const { mtime } = await Deno.stat(cacheEntryHandle(key).dir);
    assert(mtime!.getTime() > 0);
    assert(
      (await cacheEntryHandle(key).lookUpImage())?.trusted,
      "use is no change",
    );
  },
);

testWithCache(
  "ImageStaging: disposing removes the directory and its contents",
  async (key) => {
    using held = await cacheEntryHandle(key).lock();
    {
      await using staging = await held.createOrResumeStaging();
      await Deno.mkdir(join(staging.dir, "dist"));
      await Deno.writeTextFile(join(staging.dir, "dist", "part"), "x");
    }
    assertEquals(await namesIn(join(key.cache, "demo")), [`.${A}.lock`]);
  },
);

testWithCache(
  "CacheEntryHandle.lock() throws for a file in place of the cache directory, with a hint",
  async (key) => {
    await Deno.writeTextFile(key.cache, "");
    assertEquals(await cacheEntryHandle(key).lookUpImage(), undefined);
    const error = await expectFailure(
      "cache_unwritable",
      () => cacheEntryHandle(key).lock(),
    );
    assert(error.message.includes(key.cache), error.message);
    assert(error.hint?.includes("TOOLSMITH_CACHE"));
  },
);

testWithCache(
  "CacheEntryHandle.lock() throws for a file in place of the image's directory",
  async (key) => {
    await Deno.mkdir(key.cache);
    await Deno.writeTextFile(join(key.cache, "demo"), "");
    assertEquals(await cacheEntryHandle(key).lookUpImage(), undefined);
    await expectFailure("cache_unwritable", () => cacheEntryHandle(key).lock());
  },
);

testWithCache(
  "CacheEntryHandle.lock() throws for a directory in place of the lock file",
  async (key) => {
    await Deno.mkdir(cacheEntryHandle(key).lockPath, { recursive: true });
    await expectFailure("cache_unwritable", () => cacheEntryHandle(key).lock());
  },
);

Deno.test("toCacheWriteError() maps system errors to cache_unwritable, disk_full or failed", () => {
  const errno = (code: string) => Object.assign(new Error(code), { code });
  for (const code of ["EROFS", "ENOTDIR", "EEXIST", "EISDIR", "ENAMETOOLONG"]) {
    const error = toCacheWriteError(errno(code), "/cache");
    assertEquals(error.code, "cache_unwritable", code);
  }
  const denied = new Deno.errors.PermissionDenied("x");
  assertEquals(toCacheWriteError(denied, "/cache").code, "cache_unwritable");
  assertEquals(toCacheWriteError(errno("ENOSPC"), "/cache").code, "disk_full");
  assertEquals(toCacheWriteError(new Error("x"), "/cache").code, "failed");
});

Deno.test({
  name:
    "CacheEntryHandle: on a read-only file system, lookUpImage() works and lock() throws cache_unwritable",
  ...requires("root"),
  async fn() {
    await using dir = await temporaryDir();
    const key = { cache: join(dir.path, "cache"), image: "demo", sha256: A };
    await put(key, "image");
    const args = ["--bind", "-o", "ro", key.cache, key.cache];
    const mounted = await runProcess("mount", { args });
    if (mounted.code !== 0) {
      console.error(`not tried: cannot mount (${mounted.stderr.trim()})`);
      return;
    }
    try {
      assert((await cacheEntryHandle(key).lookUpImage())?.trusted);
      await cacheEntryHandle(key).markUsedAndCleanUp();
      await expectFailure(
        "cache_unwritable",
        () => cacheEntryHandle(key).lock(),
      );
    } finally {
      await runProcess("umount", { args: [key.cache] });
    }
  },
});

testWithCache(
  "createOrResumeStaging() reports a file system without file modes, and leaves no staging",
  async (key) => {
    using held = await cacheEntryHandle(key).lock();
    const refused = Object.assign(new Error("x"), { code: "EPERM" });
    using _system = replaceMethod(Deno, {
      chmod: () => Promise.reject(refused),
    });
    const { message } = await expectFailure(
      "cache_unwritable",
      () => held.createOrResumeStaging(),
    );
    assertEquals(message, `Cannot write to the cache at ${key.cache}: x`);
    assertEquals(await namesIn(join(key.cache, "demo")), [`.${A}.lock`]);
  },
);

const windows = Deno.build.os === "windows";

testWithCache(
  "createOrResumeStaging() makes files private to this user, whatever the umask",
  async (key) => {
    const umask = windows ? 0 : Deno.umask(0);
    try {
      using held = await cacheEntryHandle(key).lock();
      await using staging = await held.createOrResumeStaging();
      const modeOf = async (path: string) =>
        (await Deno.stat(path)).mode! & 0o777;
      if (windows) return;
      assertEquals(await modeOf(staging.dir), 0o700);
      assertEquals(await modeOf(key.cache), 0o755);
      assertEquals(await modeOf(cacheEntryHandle(key).lockPath), 0o600);
    } finally {
      if (!windows) Deno.umask(umask);
    }
    const path = await put(key, "image");
    const record = join(dirname(path), "verified.json");
    if (!windows) {
      assertEquals((await Deno.stat(record)).mode! & 0o777, 0o644);
    }
  },
);

testWithCache(
  "lookUpImage() ignores a verification record that other users can write",
  async (key) => {
    if (windows) return;
    await put(key, "image");
    const record = join(cacheEntryHandle(key).dir, "verified.json");
    for (const path of [record, cacheEntryHandle(key).dir, key.cache]) {
      const mode = (await Deno.stat(path)).mode! & 0o777;
      await Deno.chmod(path, 0o777);
      const found = await cacheEntryHandle(key).lookUpImage();
      assertEquals([found?.trusted, found?.verificationRecord], [
        false,
        undefined,
      ], path);
      assert(found?.untrustedReason?.startsWith(path), found?.untrustedReason);
      await Deno.chmod(path, mode);
      assert((await cacheEntryHandle(key).lookUpImage())?.trusted);
    }
  },
);

testWithCache(
  "lookUpImage() does not trust an image that other users can write",
  async (key) => {
    if (windows) return;
    await Deno.chmod(await put(key, "image"), 0o666);
    using held = await cacheEntryHandle(key).lock();
    await held.renewVerificationRecord(
      (await cacheEntryHandle(key).lookUpImage())!,
    );
    const found = await cacheEntryHandle(key).lookUpImage();
    assertEquals([found?.trusted, found?.verificationRecord?.size], [false, 5]);
  },
);

testWithCache(
  "renewVerificationRecord() ignores a directory that this user cannot write",
  async (key) => {
    const path = await put(key, "image");
    await Deno.utime(path, new Date(0), new Date(0));
    const found = (await cacheEntryHandle(key).lookUpImage())!;
    const deny = () => Promise.reject(new Deno.errors.PermissionDenied());
    // The staging directory cannot be created, or the record cannot be replaced.
    for (const method of ["mkdir", "rename"]) {
      using held = await cacheEntryHandle(key).lock();
      {
        using _denied = replaceMethod(Deno, { [method]: deny });
        await held.renewVerificationRecord(found);
      }
      assertEquals(await namesIn(dirname(found.path)), [
        "image.qcow2",
        "verified.json",
      ]);
      assertEquals(await namesIn(dirname(dirname(found.path))), [
        `.${A}.lock`,
        A,
      ]);
    }
  },
);
