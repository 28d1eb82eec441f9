import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { stagingIds, stagingName } from "../../lib/cache/_staging_names.ts";
import { cacheEntry, type CacheKey } from "../../lib/cache/entry.ts";
import { listPartialImages, pruneCache } from "../../lib/cache/prune.ts";
import { processEnvironment } from "../../lib/environment.ts";
import { asDigest } from "../../lib/system/digest.ts";
import { openPart } from "../../lib/system/part_file.ts";
import { PART, PART_RECORD } from "../../lib/system/part_record.ts";
import { temporaryDir } from "../support/directory.ts";

const SIZE = 1000;
const DAY = 24 * 3_600_000;

function test(name: string, body: (key: CacheKey) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const cache = join(dir.path, "cache");
    await body({ cache, image: "demo", sha256: "a".repeat(64) });
  });
}

/** A transfer that is cut after so many bytes; returns where they lie. */
async function cut(key: CacheKey, bytes: number): Promise<string> {
  using held = await cacheEntry(key).lock();
  await using staging = await held.stage();
  const digest = asDigest(key.sha256);
  await using part = await openPart(staging.dir, { size: SIZE, digest });
  using writer = await part.openWriter();
  writer.write(part.bytes, new Uint8Array(bytes - part.bytes));
  return staging.dir;
}

const listed = async ({ cache }: CacheKey) =>
  (await listPartialImages(cache)).map(({ path, bytes, total }) => ({
    path,
    bytes,
    total,
  }));

async function stagings({ cache, image }: CacheKey): Promise<string[]> {
  const found = await Array.fromAsync(Deno.readDir(join(cache, image)));
  return found.filter(({ isDirectory }) => isDirectory)
    .map(({ name }) => join(cache, image, name));
}

test("what a cut transfer has left is gone on with by the next", async (key) => {
  const path = await cut(key, 600);
  assertEquals(await listed(key), [{ path, bytes: 600, total: SIZE }]);
  assertEquals(await cut(key, 700), path);
  assertEquals(await listed(key), [{ path, bytes: 700, total: SIZE }]);
});

test("of several that cut transfers have left, the one with the most stays", async (key) => {
  const path = await cut(key, 600);
  const ids = await stagingIds(key.cache, key.image, processEnvironment);
  const id = await ids.next(key.sha256);
  const other = join(path, "..", stagingName({ ...key, id }));
  await Deno.mkdir(other);
  await Deno.copyFile(join(path, PART), join(other, PART));
  const text = await Deno.readTextFile(join(path, PART_RECORD));
  const less = text.replace("600", "500");
  await Deno.writeTextFile(join(other, PART_RECORD), less);
  (await cacheEntry(key).lock())[Symbol.dispose]();
  assertEquals(await stagings(key), [path]);
});

test("what nobody comes back for is removed after seven days, by a neighbour too", async (key) => {
  const path = await cut(key, 600);
  const neighbour = cacheEntry({ ...key, sha256: "b".repeat(64) });
  const age = async (days: number) => {
    const then = new Date(Date.now() - days * DAY);
    await Deno.utime(join(path, PART_RECORD), then, then);
    (await neighbour.lock())[Symbol.dispose]();
    return await stagings(key);
  };
  assertEquals(await age(6.9), [path]);
  assertEquals(await age(7.1), []);
});

test("prune removes what cut transfers have left, unless one goes on", async (key) => {
  const { cache } = key;
  const path = await cut(key, 600);
  const gone = async (options = {}) =>
    (await pruneCache(cache, options)).partials.map(({ bytes }) => bytes);
  assertEquals(await gone({ olderThanMs: DAY }), []);
  {
    using _held = await cacheEntry(key).lock();
    assertEquals(await gone(), []);
  }
  assertEquals(await gone({ dryRun: true }), [600]);
  assertEquals(await stagings(key), [path]);
  const { partials, bytes } = await pruneCache(cache);
  assertEquals([partials.length, bytes], [1, 600]);
  assertEquals(await stagings(key), []);
});

test("staging that is not to be gone on with is removed", async (key) => {
  const path = await cut(key, 600);
  await Deno.remove(join(path, PART_RECORD));
  assertEquals(await listed(key), []);
  (await cacheEntry(key).lock())[Symbol.dispose]();
  assertEquals(await stagings(key), []);
});
