import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { cacheEntryHandle, type CacheKey } from "../../lib/cache/entry.ts";
import {
  listCache,
  listPartialImages,
  pruneCache,
} from "../../lib/cache/maintenance.ts";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import { sha256ToDigest } from "../../lib/system/digest.ts";
import { readFileIdentity } from "../../lib/system/files.ts";
import { openPartFile } from "../../lib/system/part_file.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { namesIn } from "../support/directory.ts";
import { A, B, putCachedImage, testWithCache } from "../support/images.ts";
import { fillSnapshot, SNAPSHOT_BYTES } from "../support/snapshots.ts";

const DAY = 86_400_000;
const NOW = Date.parse("2026-01-31T12:00:00Z");
const now = () => NOW;

/** Puts an image into the cache; it was used some days ago. */
function put(key: CacheKey, days = 0) {
  return putCachedImage(key, new Date(NOW - days * DAY));
}

testWithCache(
  "createOrResumeStaging() uses an unpredictable directory name",
  async (key) => {
    using held = await cacheEntryHandle(key).lock();
    const seen = new Set<string>();
    for (const _ of [1, 2]) {
      await using staging = await held.createOrResumeStaging();
      const name = staging.dir.slice(join(key.cache, "demo").length + 1);
      assertMatch(name, new RegExp(`^\\.staging-${A}-[0-9a-f]{40}$`));
      seen.add(name);
    }
    assertEquals(seen.size, 2);
  },
);

testWithCache(
  "markUsedAndCleanUp() removes the stale staging directories of its own entry only",
  async (key) => {
    await put(key);
    const dir = join(key.cache, "demo");
    const [own, other] = [A, B].map((it) => `.staging-${it}-00000000`);
    {
      using _held = await cacheEntryHandle(key).lock();
      for (const name of [own, other, ".staging-x"]) {
        await Deno.mkdir(join(dir, name));
      }
      // A locked entry's staging is kept.
      await cacheEntryHandle(key).markUsedAndCleanUp();
      assert((await namesIn(dir)).includes(own));
    }
    await cacheEntryHandle(key).markUsedAndCleanUp();
    const left = (await namesIn(dir)).filter((name) =>
      name.startsWith(".staging")
    );
    assertEquals(left, [other, ".staging-x"].sort());
  },
);

testWithCache(
  "ImageStaging.commit() names the file that was replaced after hashing, with a hint",
  async (key) => {
    using held = await cacheEntryHandle(key).lock();
    await using staging = await held.createOrResumeStaging();
    const path = join(staging.dir, "i.qcow2");
    await Deno.writeTextFile(path, "image");
    const hashedFile = { ...(await readFileIdentity(path))!, size: 6 };
    const file = { path, fileName: "i.qcow2", source: "/x", hashedFile };
    const { message, hint } = await expectFailure(
      "checksum_mismatch",
      () => staging.commit(file),
    );
    assertEquals(
      message,
      "Cannot add i.qcow2 to the cache: the file was replaced after it was hashed",
    );
    assertEquals(hint, "find out which other process writes to the cache");
  },
);

testWithCache(
  "pruneCache() removes entries whose age is at least olderThanMs",
  async (key) => {
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
  },
);

testWithCache(
  "listCache() lists an image without a verification record as untrusted",
  async (key) => {
    await put(key, 3);
    await Deno.remove(join(cacheEntryHandle(key).dir, "verified.json"));
    const [{ states: _, used: _used, path: _path, ...entry }] = await listCache(
      key.cache,
    );
    assertEquals(entry as unknown, {
      ...{ image: "demo", digest: `sha256:${A}`, bytes: 5 },
      ...{ source: undefined, verified: undefined, trusted: false },
    });
  },
);

testWithCache(
  "listPartialImages() lists each partial download with image, size and time",
  async (key) => {
    assertEquals(await listPartialImages(key.cache), []);
    const before = Date.now() - 2000;
    for (const [image, bytes] of [["other", 300], ["demo", 200]] as const) {
      using held = await cacheEntryHandle({ ...key, image }).lock();
      await using staging = await held.createOrResumeStaging();
      const digest = sha256ToDigest(A);
      await using part = await openPartFile(staging.dir, {
        size: 1000,
        digest,
      });
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
  },
);

testWithCache(
  "pruneCache() removes this user's snapshots of images in other users' caches",
  async (key) => {
    const home = join(key.cache, "..", "home");
    const dir = join(home, "toolsmith", "machines", B);
    await using staging = await snapshotStore(dir).createStaging(A);
    await fillSnapshot(staging!);
    await staging![Symbol.asyncDispose]();
    const result = async (env: Map<string, string>) => {
      const { states, bytes } = await pruneCache(key.cache, { env });
      return [states.length, bytes];
    };
    assertEquals(await result(new Map([["HOME", home]])), [0, 0]);
    assertEquals(await result(new Map([["XDG_CACHE_HOME", home]])), [
      1,
      SNAPSHOT_BYTES,
    ]);
    assertEquals(await snapshotStore(dir).list(), []);
  },
);
