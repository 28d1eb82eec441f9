import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { deniedAs } from "../../lib/cache/_staging.ts";
import { cacheEntry, type CacheKey } from "../../lib/cache/entry.ts";
import {
  listCache,
  listPartialImages,
  pruneCache,
} from "../../lib/cache/prune.ts";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import { asDigest } from "../../lib/system/digest.ts";
import { fingerprint } from "../../lib/system/files.ts";
import { openPart } from "../../lib/system/part_file.ts";
import { failure } from "../support/failure.ts";
import { namesIn } from "../support/directory.ts";
import { A, B, putImage, test } from "../support/images.ts";

const DAY = 86_400_000;
const NOW = Date.parse("2026-01-31T12:00:00Z");
const now = () => NOW;

/** Puts an image into the cache; it was used some days ago. */
function put(key: CacheKey, days = 0) {
  return putImage(key, new Date(NOW - days * DAY));
}

test("an entry is filled under a name that nobody can foresee", async (key) => {
  using held = await cacheEntry(key).lock();
  const seen = new Set<string>();
  for (const _ of [1, 2]) {
    await using staging = await held.stage();
    const name = staging.dir.slice(join(key.cache, "demo").length + 1);
    assertMatch(name, new RegExp(`^\\.staging-${A}-[0-9a-f]{40}$`));
    seen.add(name);
  }
  assertEquals(seen.size, 2);
});

test("whoever uses an image removes what was left of it, and nothing of its neighbours", async (key) => {
  await put(key);
  const dir = join(key.cache, "demo");
  const [own, other] = [A, B].map((it) => `.staging-${it}-00000000`);
  {
    using _held = await cacheEntry(key).lock();
    for (const name of [own, other, ".staging-x"]) {
      await Deno.mkdir(join(dir, name));
    }
    // Whoever has the lock may be filling it.
    await cacheEntry(key).touch();
    assert((await namesIn(dir)).includes(own));
  }
  await cacheEntry(key).touch();
  const left = (await namesIn(dir)).filter((name) =>
    name.startsWith(".staging")
  );
  assertEquals(left, [other, ".staging-x"].sort());
});

test("a file that was replaced is refused by its name, with what to do", async (key) => {
  using held = await cacheEntry(key).lock();
  await using staging = await held.stage();
  const path = join(staging.dir, "i.qcow2");
  await Deno.writeTextFile(path, "image");
  const hashed = { ...(await fingerprint(path))!, size: 6 };
  const file = { path, name: "i.qcow2", source: "/x", hashed };
  const { message, hint } = await failure(
    "checksum_mismatch",
    () => staging.place(file),
  );
  assertEquals(
    message,
    "Cannot place i.qcow2: the file was replaced after it was hashed",
  );
  assertEquals(hint, "find out who else writes to the cache");
});

test("prune takes what is exactly so old, and all that is not younger than now", async (key) => {
  await put(key, 7);
  await put({ ...key, sha256: B }, 0);
  const gone = async (olderThanMs?: number) => {
    const options = { keep: 0, olderThanMs, now, dryRun: true };
    const { removed } = await pruneCache(key.cache, options);
    return removed.map(({ digest }) => digest.slice(7, 8)).join("");
  };
  assertEquals(await gone(7 * DAY + 1), "");
  assertEquals(await gone(7 * DAY), "a");
  assertEquals(await gone(1), "a");
  assertEquals(await gone(), "ba");
});

test("an image without a record is listed without what is not known of it", async (key) => {
  await put(key, 3);
  await Deno.remove(join(cacheEntry(key).dir, "verified.json"));
  const [{ states: _, used: _used, path: _path, ...entry }] = await listCache(
    key.cache,
  );
  assertEquals(entry as unknown, {
    ...{ image: "demo", digest: `sha256:${A}`, bytes: 5 },
    ...{ source: undefined, verified: undefined, trusted: false },
  });
});

test("what a cut transfer has left is listed with its image, and when it came", async (key) => {
  assertEquals(await listPartialImages(key.cache), []);
  const before = Date.now() - 2000;
  for (const [image, bytes] of [["other", 300], ["demo", 200]] as const) {
    using held = await cacheEntry({ ...key, image }).lock();
    await using staging = await held.stage();
    const digest = asDigest(A);
    await using part = await openPart(staging.dir, { size: 1000, digest });
    using writer = await part.openWriter();
    writer.write(0, new Uint8Array(bytes));
  }
  const found = await listPartialImages(key.cache);
  assertEquals(
    found.map(({ path: _, used: _used, ...rest }) => rest as unknown),
    [["demo", 200], ["other", 300]].map(([image, bytes]) => ({
      ...{ image, digest: `sha256:${A}`, bytes, total: 1000 },
    })),
  );
  for (const { path, image, used } of found) {
    const start = join(key.cache, image, `.staging-${A}-`);
    assertEquals(path.slice(0, start.length), start);
    const time = Date.parse(used);
    assert(time >= before && time <= Date.now() + 2000, used);
  }
});

test("prune takes machines of images in caches of others, too", async (key) => {
  const home = join(key.cache, "..", "home");
  const dir = join(home, "toolsmith", "machines", B);
  await using staging = await snapshotStore(dir).stage(A);
  await Deno.writeTextFile(staging!.state, "state");
  await Deno.writeTextFile(staging!.disk, "");
  await staging!.place();
  await staging![Symbol.asyncDispose]();
  const result = async (env: Map<string, string>) => {
    const { states, bytes } = await pruneCache(key.cache, { env });
    return [states.length, bytes];
  };
  assertEquals(await result(new Map([["HOME", home]])), [0, 0]);
  assertEquals(await result(new Map([["XDG_CACHE_HOME", home]])), [1, 5]);
  assertEquals(await snapshotStore(dir).list(), []);
});

Deno.test("what a user may not do counts as the value given, and other failures stay", async () => {
  const denied = Promise.reject(new Deno.errors.PermissionDenied("x"));
  assertEquals(await deniedAs("value", denied), "value");
  assertEquals(await deniedAs("value", Promise.resolve("done")), "done");
  const other = () => deniedAs("value", Promise.reject(new Error("other")));
  await assertRejects(other, Error, "other");
});
