import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  formatStagingName,
  stagingIdSigner,
} from "../../lib/cache/_staging_names.ts";
import { cacheEntryHandle, type CacheKey } from "../../lib/cache/entry.ts";
import { listPartialImages, pruneCache } from "../../lib/cache/maintenance.ts";
import { processEnvironment } from "../../lib/environment.ts";
import { sha256ToDigest } from "../../lib/system/digest.ts";
import { openPartFile } from "../../lib/system/part_file.ts";
import {
  DURABLE_EXTENTS_FILE,
  PART_FILE_NAME,
} from "../../lib/system/part_record.ts";
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

/** Leaves a partial download of that size; returns its directory. */
async function cut(key: CacheKey, bytes: number): Promise<string> {
  using held = await cacheEntryHandle(key).lock();
  await using staging = await held.createOrResumeStaging();
  const digest = sha256ToDigest(key.sha256);
  await using part = await openPartFile(staging.dir, { size: SIZE, digest });
  using writer = await part.openWriter();
  writer.write(part.presentBytes, new Uint8Array(bytes - part.presentBytes));
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

test("createOrResumeStaging() resumes a partial download", async (key) => {
  const path = await cut(key, 600);
  assertEquals(await listed(key), [{ path, bytes: 600, total: SIZE }]);
  assertEquals(await cut(key, 700), path);
  assertEquals(await listed(key), [{ path, bytes: 700, total: SIZE }]);
});

test("CacheEntryHandle.lock() keeps the largest of several partial downloads of an image", async (key) => {
  const path = await cut(key, 600);
  const ids = await stagingIdSigner(key.cache, key.image, processEnvironment);
  const id = await ids.createId(key.sha256);
  const other = join(path, "..", formatStagingName({ ...key, id }));
  await Deno.mkdir(other);
  await Deno.copyFile(join(path, PART_FILE_NAME), join(other, PART_FILE_NAME));
  const text = await Deno.readTextFile(join(path, DURABLE_EXTENTS_FILE));
  const less = text.replace("600", "500");
  await Deno.writeTextFile(join(other, DURABLE_EXTENTS_FILE), less);
  (await cacheEntryHandle(key).lock())[Symbol.dispose]();
  assertEquals(await stagings(key), [path]);
});

test("CacheEntryHandle.lock() removes partial downloads older than seven days, also of other digests", async (key) => {
  const path = await cut(key, 600);
  const neighbour = cacheEntryHandle({ ...key, sha256: "b".repeat(64) });
  const age = async (days: number) => {
    const then = new Date(Date.now() - days * DAY);
    await Deno.utime(join(path, DURABLE_EXTENTS_FILE), then, then);
    (await neighbour.lock())[Symbol.dispose]();
    return await stagings(key);
  };
  assertEquals(await age(6.9), [path]);
  assertEquals(await age(7.1), []);
});

test("pruneCache() removes partial downloads unless one is locked", async (key) => {
  const { cache } = key;
  const path = await cut(key, 600);
  const gone = async (options = {}) =>
    (await pruneCache(cache, options)).partials.map(({ bytes }) => bytes);
  assertEquals(await gone({ olderThanMs: DAY }), []);
  {
    using _held = await cacheEntryHandle(key).lock();
    assertEquals(await gone(), []);
  }
  assertEquals(await gone({ dryRun: true }), [600]);
  assertEquals(await stagings(key), [path]);
  const { partials, bytes } = await pruneCache(cache);
  assertEquals([partials.length, bytes], [1, 600]);
  assertEquals(await stagings(key), []);
});

test("CacheEntryHandle.lock() removes a staging directory without a part record", async (key) => {
  const path = await cut(key, 600);
  await Deno.remove(join(path, DURABLE_EXTENTS_FILE));
  assertEquals(await listed(key), []);
  (await cacheEntryHandle(key).lock())[Symbol.dispose]();
  assertEquals(await stagings(key), []);
});
