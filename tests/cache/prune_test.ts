import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { cacheEntryHandle, type CacheKey } from "../../lib/cache/entry.ts";
import {
  type CacheEntry,
  listCache,
  pruneCache,
  type PruneResult,
} from "../../lib/cache/maintenance.ts";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import { temporaryDir } from "../support/directory.ts";
import { putCachedImage } from "../support/images.ts";
import { fillSnapshot, SNAPSHOT_BYTES } from "../support/snapshots.ts";

const DAY = 86_400_000;
const NOW = Date.parse("2026-01-31T12:00:00Z");
const now = () => NOW;

/** An image of the cache: its name, a digit of its digest, its age in days. */
type Entry = [image: string, digit: string, days: number];

function keyOf(cache: string, image: string, digit: string): CacheKey {
  return { cache, image, sha256: digit.repeat(64) };
}

/** Runs a test with a cache that holds these images. */
function test(
  name: string,
  entries: Entry[],
  body: (cache: string) => Promise<void>,
) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const cache = join(dir.path, "cache");
    for (const [image, digit, days] of entries) {
      const used = new Date(NOW - days * DAY);
      await putCachedImage(keyOf(cache, image, digit), used);
    }
    await body(cache);
  });
}

/** Such as `demo a`. */
function short({ image, digest }: { image: string; digest: string }) {
  return `${image} ${digest.replace("sha256:", "")[0]}`;
}

const left = async (cache: string) => (await listCache(cache)).map(short);
const gone = ({ removed }: PruneResult) => removed.map(short);

const FOUR: Entry[] = [
  ["demo", "a", 10],
  ["demo", "b", 1],
  ["demo", "c", 5],
  ["other", "a", 40],
];

test(
  "listCache() sorts images by name, most recently used first",
  FOUR,
  async (cache) => {
    const entries = await listCache(cache);
    assertEquals(entries.map(short), ["demo b", "demo c", "demo a", "other a"]);
    const { verified, ...entry } = entries[0];
    assert(Date.parse(verified!) > 0);
    assertEquals(entry, {
      image: "demo",
      digest: `sha256:${"b".repeat(64)}`,
      path: join(cacheEntryHandle(keyOf(cache, "demo", "b")).dir, "i.qcow2"),
      bytes: 5,
      source: "/x",
      used: "2026-01-30T12:00:00.000Z",
      trusted: true,
      states: [],
    });
  },
);

test(
  "listCache() and pruneCache() ignore unrelated files in the cache",
  FOUR,
  async (cache) => {
    const strange = [
      join(cache, "file"),
      join(cache, "demo", "notes.txt"),
      join(cache, "demo", "f".repeat(63), "x.qcow2"),
      join(cache, ".hidden", "a".repeat(64), "x.qcow2"),
      // An entry without an image.
      join(cache, "demo", "d".repeat(64), "readme"),
    ];
    for (const path of strange) {
      await Deno.mkdir(join(path, ".."), { recursive: true });
      await Deno.writeTextFile(path, "");
    }
    assertEquals((await left(cache)).length, 4);
    await pruneCache(cache, { keep: 0, now });
    assertEquals(await left(cache), []);
    for (const path of strange) await Deno.stat(path);
  },
);

Deno.test("listCache() and pruneCache() treat a missing cache as empty", async () => {
  await using dir = await temporaryDir();
  const cache = join(dir.path, "none");
  assertEquals(await listCache(cache), []);
  const nothing = {
    removed: [],
    busy: [],
    denied: [],
    states: [],
    partials: [],
    bytes: 0,
  };
  assertEquals(await pruneCache(cache), nothing);
});

test(
  "pruneCache() keeps the most recently used entry of each image name",
  FOUR,
  async (cache) => {
    const result = await pruneCache(cache, { now });
    assertEquals(gone(result), ["demo c", "demo a"]);
    assertEquals(result.bytes, 10);
    assertEquals(await left(cache), ["demo b", "other a"]);
  },
);

test(
  "pruneCache() keeps the number of entries per image that the keep option gives",
  FOUR,
  async (cache) => {
    assertEquals(gone(await pruneCache(cache, { keep: 2, now })), ["demo a"]);
    const all = gone(await pruneCache(cache, { keep: 0, now }));
    assertEquals(all, ["demo b", "demo c", "other a"]);
  },
);

test(
  "pruneCache() keeps entries used within olderThanMs",
  FOUR,
  async (cache) => {
    const options = { keep: 0, olderThanMs: 7 * DAY, now };
    assertEquals(gone(await pruneCache(cache, options)), ["demo a", "other a"]);
  },
);

test(
  "pruneCache() keeps the entries of the protect option, also with an unnormalized cache path",
  FOUR,
  async (cache) => {
    const protect = [
      keyOf(cache, "demo", "a"),
      keyOf(`${cache}/../cache/`, "other", "a"),
    ];
    const result = await pruneCache(cache, { keep: 0, protect, now });
    assertEquals(gone(result), ["demo b", "demo c"]);
    assertEquals(await left(cache), ["demo a", "other a"]);
  },
);

test(
  "pruneCache() with dryRun returns the same result and removes nothing",
  FOUR,
  async (cache) => {
    const key = keyOf(cache, "demo", "a");
    const stale = join(cache, "demo", `.staging-${key.sha256}-0`);
    await Deno.mkdir(stale);
    const dry = await pruneCache(cache, { dryRun: true, now });
    assertEquals((await left(cache)).length, 4);
    await Deno.stat(stale);
    assertEquals(await pruneCache(cache, { now }), dry);
  },
);

test(
  "pruneCache() keeps a locked entry and reports it as busy",
  FOUR,
  async (cache) => {
    using _lock = await cacheEntryHandle(keyOf(cache, "demo", "a")).lock();
    const result = await pruneCache(cache, { now });
    assertEquals(gone(result), ["demo c"]);
    assertEquals(result.busy.map(short), ["demo a"]);
    assertEquals(result.bytes, 5);
    assert(
      (await cacheEntryHandle(keyOf(cache, "demo", "a")).lookUpImage())
        ?.trusted,
    );
  },
);

test(
  "pruneCache() removes stale staging directories, but not one in use",
  FOUR,
  async (cache) => {
    const busy = keyOf(cache, "demo", "b");
    using held = await cacheEntryHandle(busy).lock();
    await using staging = await held.createOrResumeStaging();
    const stale = join(cache, "other", `.staging-${"e".repeat(64)}-0`);
    await Deno.mkdir(join(stale, "deep"), { recursive: true });
    await pruneCache(cache, { keep: 9, now });
    await Deno.stat(staging.dir);
    const there = await Deno.stat(stale).catch(() => undefined);
    assertEquals(there, undefined);
  },
);

test(
  "pruneCache() removes an image that is open, and the open file stays readable",
  FOUR,
  async (cache) => {
    const found = await cacheEntryHandle(keyOf(cache, "demo", "a"))
      .lookUpImage();
    using reader = await Deno.open(found!.path);
    await pruneCache(cache, { keep: 0, now });
    assertEquals(await new Response(reader.readable).text(), "image");
  },
);

test(
  "pruneCache() counts each removed entry once when called four times at once",
  FOUR,
  async (cache) => {
    const results = await Promise.all(
      [1, 2, 3, 4].map(() => pruneCache(cache, { keep: 0, now })),
    );
    assertEquals(await left(cache), []);
    const all = results.flatMap(gone).sort();
    assertEquals(all, ["demo a", "demo b", "demo c", "other a"]);
  },
);

const statesOf = (cache: string, image: string, digit: string) =>
  join(cacheEntryHandle(keyOf(cache, image, digit)).dir, "machines");

/** Saves a snapshot of an image, last used some days ago. */
async function saveState(
  dir: string,
  { digit, days, bytes }: { digit: string; days: number; bytes: number },
): Promise<string> {
  const key = digit.repeat(64);
  await using staging = await snapshotStore(dir).createStaging(key);
  const empty = { memory: "", disk: "" };
  const { path } = await fillSnapshot(staging!, {
    state: "x".repeat(bytes),
    ...empty,
  });
  const used = new Date(NOW - days * DAY);
  await Deno.utime(join(dir, `${key}.json`), used, used);
  return path;
}

/** Such as `b 100`. */
const states = (of: { states: CacheEntry["states"] }) =>
  of.states.map(({ key, bytes }) => `${key[0]} ${bytes}`);

const TWO: Entry[] = [["demo", "a", 10], ["demo", "b", 1]];

/** Runs a test with a cache of two images and three snapshots. */
function testStates(name: string, body: (cache: string) => Promise<void>) {
  test(name, TWO, async (cache) => {
    const [older, newer] = ["a", "b"].map((it) => statesOf(cache, "demo", it));
    await saveState(older, { digit: "1", days: 9, bytes: 10 });
    await saveState(newer, { digit: "2", days: 8, bytes: 200 });
    await saveState(newer, { digit: "3", days: 0, bytes: 3000 });
    // Saving a snapshot updates the entry's time.
    for (const [image, digit, days] of TWO) {
      const used = new Date(NOW - days * DAY);
      await Deno.utime(
        cacheEntryHandle(keyOf(cache, image, digit)).dir,
        used,
        used,
      );
    }
    await body(cache);
  });
}

testStates("listCache() lists each image's snapshots", async (cache) => {
  const entries = await listCache(cache);
  assertEquals(entries.map(short), ["demo b", "demo a"]);
  assertEquals(entries.map(states), [["2 200", "3 3000"], ["1 10"]]);
  // The image's own size and trust are unchanged.
  assertEquals(entries.map(({ bytes }) => bytes), [5, 5]);
  assertEquals(entries.map(({ trusted }) => trusted), [true, true]);
  assertEquals(entries[1].states[0].used, "2026-01-22T12:00:00.000Z");
});

testStates(
  "pruneCache() removes snapshots, also of images that it keeps",
  async (cache) => {
    const result = await pruneCache(cache, { now });
    assertEquals(gone(result), ["demo a"]);
    assertEquals(states(result), ["2 200", "3 3000", "1 10"]);
    assertEquals(result.bytes, 3215);
    const [entry, ...more] = await listCache(cache);
    assertEquals([short(entry), entry.states, more], ["demo b", [], []]);
  },
);

testStates(
  "pruneCache() keeps snapshots used within olderThanMs",
  async (cache) => {
    const options = { keep: 9, olderThanMs: 5 * DAY, now };
    const dry = await pruneCache(cache, { ...options, dryRun: true });
    assertEquals(states(dry), ["2 200", "1 10"]);
    const before = (await listCache(cache)).flatMap(states);
    assertEquals(before, ["2 200", "3 3000", "1 10"]);
    assertEquals(await pruneCache(cache, options), dry);
    assertEquals((await listCache(cache)).flatMap(states), ["3 3000"]);
  },
);

testStates("pruneCache() removes damaged snapshots", async (cache) => {
  const dir = statesOf(cache, "demo", "b");
  await Deno.truncate(join(dir, `${"3".repeat(64)}.state`), 7);
  const listed = (await listCache(cache)).flatMap(states);
  assertEquals(listed, ["2 200", "3 7", "1 10"]);
  const result = await pruneCache(cache, { keep: 9, now: () => Date.now() });
  assertEquals(states(result), listed);
  assertEquals((await listCache(cache)).flatMap(states), []);
});

testStates(
  "pruneCache() skips a snapshot that another process is saving",
  async (cache) => {
    const dir = statesOf(cache, "demo", "b");
    const key = "2".repeat(64);
    const left = join(dir, `.staging-${"3".repeat(64)}-0`);
    await Deno.mkdir(left);
    await using staging = await snapshotStore(dir).createStaging(key);
    const result = await pruneCache(cache, { now });
    assertEquals(states(result), ["3 3000", "1 10"]);
    assertEquals(await Deno.stat(left).catch(() => "gone"), "gone");
    const { bytes } = await fillSnapshot(staging!);
    assertEquals(bytes, SNAPSHOT_BYTES);
    assertEquals(typeof await snapshotStore(dir).find(key), "object");
  },
);

testStates(
  "pruneCache() counts each removed snapshot once when called four times at once",
  async (cache) => {
    const results = await Promise.all(
      [1, 2, 3, 4].map(() => pruneCache(cache, { keep: 0, now })),
    );
    assertEquals(await left(cache), []);
    assertEquals(results.flatMap(gone).sort(), ["demo a", "demo b"]);
    const taken = results.flatMap(states);
    assertEquals(taken.length, new Set(taken).size, taken.join());
  },
);
