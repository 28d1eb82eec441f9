import { assert, assertEquals } from "@std/assert";
import { dirname, join } from "@std/path";
import {
  asCacheError,
  cacheEntry,
  type CacheKey,
  findCache,
} from "../../lib/cache/entry.ts";
import { fingerprint } from "../../lib/system/files.ts";
import { run } from "../../lib/system/process.ts";
import { failure } from "../support/failure.ts";
import { namesIn, temporaryDir } from "../support/directory.ts";
import { A, B, test } from "../support/images.ts";

const SOURCE = "oci://ghcr.io/owner/repo:1.0";

/** Puts an image into the cache as a hydrate does. */
async function put(key: CacheKey, text: string, name = "image.qcow2") {
  using held = await cacheEntry(key).lock();
  await using staging = await held.stage();
  const path = join(staging.dir, name);
  await Deno.writeTextFile(path, text);
  const hashed = (await fingerprint(path))!;
  return await staging.place({ path, name, source: SOURCE, hashed });
}

Deno.test("findCache() takes what the caller names, the variable, or the workspace's own", async () => {
  const find = (cache: string | undefined, variable: string) =>
    findCache("/srv", {
      cache,
      env: new Map([["TOOLSMITH_CACHE", variable]]),
    });
  assertEquals(await find(undefined, ""), "/srv/.toolsmith/cache");
  assertEquals(await find(undefined, "/var/cache"), "/var/cache");
  assertEquals(await find("/named", "/var/cache"), "/named");
});

test("what was placed is found, trusted, read-only, and alone", async (key) => {
  const path = await put(key, "image");
  assertEquals(path, join(key.cache, "demo", A, "image.qcow2"));
  const found = await cacheEntry(key).lookUp();
  assertEquals(found?.path, path);
  assertEquals([found?.bytes, found?.trusted], [5, true]);
  assertEquals(found?.record?.source, SOURCE);
  assertEquals(found?.record?.digest, `sha256:${A}`);
  const { mode } = await Deno.stat(path);
  if (mode !== null) assertEquals(mode & 0o777, 0o444);
  assertEquals(await namesIn(cacheEntry(key).dir), [
    "image.qcow2",
    "verified.json",
  ]);
  assertEquals(await namesIn(join(key.cache, "demo")), [`.${A}.lock`, A]);
});

test("a file that is replaced after it was hashed is not placed", async (key) => {
  {
    using held = await cacheEntry(key).lock();
    await using staging = await held.stage();
    const path = join(staging.dir, "image.qcow2");
    await Deno.writeTextFile(path, "image");
    const hashed = (await fingerprint(path))!;
    await Deno.writeTextFile(`${path}.new`, "IMAGE");
    await Deno.rename(`${path}.new`, path);
    const file = { path, name: "image.qcow2", source: SOURCE, hashed };
    await failure("checksum_mismatch", () => staging.place(file));
  }
  assertEquals(await cacheEntry(key).lookUp(), undefined);
  assertEquals(await namesIn(join(key.cache, "demo")), [`.${A}.lock`]);
});

test("nothing is found where nothing is", async (key) => {
  assertEquals(await cacheEntry(key).lookUp(), undefined);
  await Deno.mkdir(cacheEntry(key).dir, { recursive: true });
  assertEquals(await cacheEntry(key).lookUp(), undefined);
  // A stamp without its image is nothing either.
  await Deno.writeTextFile(
    join(cacheEntry(key).dir, "verified.json"),
    '{"file":"image.qcow2"}',
  );
  assertEquals(await cacheEntry(key).lookUp(), undefined);
});

test("an entry that is there is replaced whole", async (key) => {
  await put(key, "old", "old.qcow2");
  const path = await put(key, "new");
  assertEquals(await Deno.readTextFile(path), "new");
  assertEquals(await namesIn(cacheEntry(key).dir), [
    "image.qcow2",
    "verified.json",
  ]);
  assertEquals(await namesIn(join(key.cache, "demo")), [`.${A}.lock`, A]);
});

test("who reads an image that is replaced reads on", async (key) => {
  using reader = await Deno.open(await put(key, "old"));
  await put(key, "new");
  assertEquals(await new Response(reader.readable).text(), "old");
});

test("a file in the place of an entry is replaced", async (key) => {
  await Deno.mkdir(dirname(cacheEntry(key).dir), { recursive: true });
  await Deno.writeTextFile(cacheEntry(key).dir, "in the way");
  assertEquals(await cacheEntry(key).lookUp(), undefined);
  await put(key, "image");
  assert((await cacheEntry(key).lookUp())?.trusted);
});

/** Ways to touch an image after it was verified. */
const TOUCHES: Record<string, (path: string) => Promise<void>> = {
  async "other bytes of the same length, times restored"(path) {
    // The time of change, which nobody can restore, has the grain of a second.
    await new Promise((done) => setTimeout(done, 1050));
    const { atime, mtime } = await Deno.stat(path);
    await Deno.chmod(path, 0o644);
    await Deno.writeTextFile(path, "IMAGE");
    await Deno.chmod(path, 0o444);
    await Deno.utime(path, atime!, mtime!);
  },
  async "a longer file"(path) {
    await Deno.chmod(path, 0o644);
    await Deno.writeTextFile(path, "!", { append: true });
  },
  async "another file under its name"(path) {
    await Deno.writeTextFile(`${path}.new`, "IMAGE");
    await Deno.rename(`${path}.new`, path);
  },
  async "a stamp of another image"(path) {
    const record = join(dirname(path), "verified.json");
    const text = await Deno.readTextFile(record);
    await Deno.writeTextFile(record, text.replaceAll(A, B));
  },
  async "a stamp that is no JSON"(path) {
    await Deno.writeTextFile(join(dirname(path), "verified.json"), "{");
  },
  async "no stamp"(path) {
    await Deno.remove(join(dirname(path), "verified.json"));
  },
};

for (const [name, change] of Object.entries(TOUCHES)) {
  test(`${name}: the image is found and not trusted, until it is verified again`, async (key) => {
    const path = await put(key, "image");
    await change(path);
    const found = await cacheEntry(key).lookUp();
    assertEquals([found?.path, found?.trusted], [path, false]);
    {
      using held = await cacheEntry(key).lock();
      await held.renew(found!);
    }
    assertEquals((await cacheEntry(key).lookUp())?.trusted, true);
  });
}

test("a stamp that points elsewhere is no stamp", async (key) => {
  await put(key, "image");
  const record = join(cacheEntry(key).dir, "verified.json");
  for (const file of ["..", ".", "../x.qcow2", "/etc/passwd", "", 7, null]) {
    await Deno.writeTextFile(record, JSON.stringify({ file }));
    const found = await cacheEntry(key).lookUp();
    assertEquals(
      found?.path,
      join(cacheEntry(key).dir, "image.qcow2"),
      `${file}`,
    );
    assert(!found?.trusted);
  }
});

test("what is no regular file counts as nothing, so that it is replaced", async (key) => {
  const path = await put(key, "image");
  const elsewhere = join(key.cache, "elsewhere");
  await Deno.rename(path, elsewhere);
  await Deno.symlink(elsewhere, path);
  assertEquals(await cacheEntry(key).lookUp(), undefined);
  await Deno.remove(path);
  await Deno.mkdir(path);
  assertEquals(await cacheEntry(key).lookUp(), undefined);
  await put(key, "image");
  assert((await cacheEntry(key).lookUp())?.trusted);
});

test("use is noted on the entry, and a cache that is not there is no matter", async (key) => {
  await cacheEntry(key).touch();
  await put(key, "image");
  await Deno.utime(cacheEntry(key).dir, 0, 0);
  await cacheEntry(key).touch();
  const { mtime } = await Deno.stat(cacheEntry(key).dir);
  assert(mtime!.getTime() > 0);
  assert((await cacheEntry(key).lookUp())?.trusted, "use is no change");
});

test("staging is removed with all it holds", async (key) => {
  using held = await cacheEntry(key).lock();
  {
    await using staging = await held.stage();
    await Deno.mkdir(join(staging.dir, "dist"));
    await Deno.writeTextFile(join(staging.dir, "dist", "part"), "x");
  }
  assertEquals(await namesIn(join(key.cache, "demo")), [`.${A}.lock`]);
});

test("a file where the cache should be is told as such, with a remedy", async (key) => {
  await Deno.writeTextFile(key.cache, "");
  assertEquals(await cacheEntry(key).lookUp(), undefined);
  const error = await failure("cache_unwritable", () => cacheEntry(key).lock());
  assert(error.message.includes(key.cache), error.message);
  assert(error.hint?.includes("TOOLSMITH_CACHE"));
});

test("a file where the image's directory should be is told, too", async (key) => {
  await Deno.mkdir(key.cache);
  await Deno.writeTextFile(join(key.cache, "demo"), "");
  assertEquals(await cacheEntry(key).lookUp(), undefined);
  await failure("cache_unwritable", () => cacheEntry(key).lock());
});

test("a directory where the lock should be is told, too", async (key) => {
  await Deno.mkdir(cacheEntry(key).lockPath, { recursive: true });
  await failure("cache_unwritable", () => cacheEntry(key).lock());
});

Deno.test("what the system says of a cache has its code", () => {
  const errno = (code: string) => Object.assign(new Error(code), { code });
  for (const code of ["EROFS", "ENOTDIR", "EEXIST", "EISDIR", "ENAMETOOLONG"]) {
    const error = asCacheError(errno(code), "/cache");
    assertEquals(error.code, "cache_unwritable", code);
  }
  const denied = new Deno.errors.PermissionDenied("x");
  assertEquals(asCacheError(denied, "/cache").code, "cache_unwritable");
  assertEquals(asCacheError(errno("ENOSPC"), "/cache").code, "disk_full");
  assertEquals(asCacheError(new Error("x"), "/cache").code, "failed");
});

Deno.test({
  name: "a read-only file system is told as such, and what is in it is used",
  ignore: Deno.build.os !== "linux" || Deno.uid() !== 0,
  async fn() {
    await using dir = await temporaryDir();
    const key = { cache: join(dir.path, "cache"), image: "demo", sha256: A };
    await put(key, "image");
    const args = ["--bind", "-o", "ro", key.cache, key.cache];
    const mounted = await run("mount", { args });
    if (mounted.code !== 0) {
      console.error(`not tried: cannot mount (${mounted.stderr.trim()})`);
      return;
    }
    try {
      assert((await cacheEntry(key).lookUp())?.trusted);
      await cacheEntry(key).touch();
      await failure("cache_unwritable", () => cacheEntry(key).lock());
    } finally {
      await run("umount", { args: [key.cache] });
    }
  },
});

const windows = Deno.build.os === "windows";

test("what is being filled is for this user alone, and a group writes nothing", async (key) => {
  const umask = windows ? 0 : Deno.umask(0);
  try {
    using held = await cacheEntry(key).lock();
    await using staging = await held.stage();
    const modeOf = async (path: string) =>
      (await Deno.stat(path)).mode! & 0o777;
    if (windows) return;
    assertEquals(await modeOf(staging.dir), 0o700);
    assertEquals(await modeOf(key.cache), 0o755);
    assertEquals(await modeOf(cacheEntry(key).lockPath), 0o600);
  } finally {
    if (!windows) Deno.umask(umask);
  }
  const path = await put(key, "image");
  const record = join(dirname(path), "verified.json");
  if (!windows) {
    assertEquals((await Deno.stat(record)).mode! & 0o777, 0o644);
  }
});

test("a record is believed only while nobody else can write where it lies", async (key) => {
  if (windows) return;
  await put(key, "image");
  const record = join(cacheEntry(key).dir, "verified.json");
  for (const path of [record, cacheEntry(key).dir, key.cache]) {
    const mode = (await Deno.stat(path)).mode! & 0o777;
    await Deno.chmod(path, 0o777);
    const found = await cacheEntry(key).lookUp();
    assertEquals([found?.trusted, found?.record], [false, undefined], path);
    assert(found?.suspect?.startsWith(path), found?.suspect);
    await Deno.chmod(path, mode);
    assert((await cacheEntry(key).lookUp())?.trusted);
  }
});

test("an image that others can write is not believed, whatever its record says", async (key) => {
  if (windows) return;
  await Deno.chmod(await put(key, "image"), 0o666);
  using held = await cacheEntry(key).lock();
  await held.renew((await cacheEntry(key).lookUp())!);
  const found = await cacheEntry(key).lookUp();
  assertEquals([found?.trusted, found?.record?.size], [false, 5]);
});
