import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { basename, dirname, join } from "@std/path";
import { type Snapshot, snapshotStore } from "../../lib/cache/snapshots.ts";
import { fingerprint } from "../../lib/system/files.ts";
import { temporaryDir } from "../support/directory.ts";

const KEY = "a".repeat(64);
const OTHER = "b".repeat(64);
const windows = Deno.build.os === "windows";

/** Runs a test with a directory of saved machines. */
function test(name: string, body: (dir: string) => Promise<void>) {
  Deno.test({
    name,
    // Modes and the length of a path are others there.
    ignore: windows,
    async fn() {
      await using dir = await temporaryDir();
      await body(join(dir.path, "machines"));
    },
  });
}

/** Saves a machine that has a disk. */
async function save(dir: string, key = KEY): Promise<Snapshot> {
  await using staging = await snapshotStore(dir).stage(key);
  await Deno.writeTextFile(staging!.state, "state");
  await Deno.writeTextFile(staging!.disk, "disk");
  return await staging!.place();
}

/** Names of all files but locks. */
async function names(dir: string): Promise<string[]> {
  const found = await Array.fromAsync(Deno.readDir(dir));
  return found.map(({ name }) => name.replace(KEY, "a").replace(OTHER, "b"))
    .filter((name) => !name.endsWith(".lock")).sort();
}

test("a machine is saved in a directory that nobody can foresee, and of this user alone", async (dir) => {
  const seen = new Set<string>();
  for (const key of [KEY, OTHER]) {
    await using staging = await snapshotStore(dir).stage(key);
    const { state, memory, disk } = staging!;
    const name = basename(staging!.dir);
    assertMatch(name, new RegExp(`^\\.staging-${key}-[0-9a-f]{8}$`));
    seen.add(name.slice(-8));
    assertEquals((await Deno.stat(staging!.dir)).mode! & 0o777, 0o700);
    for (const path of [state, memory, disk]) {
      assertEquals(dirname(path), staging!.dir);
    }
    assertEquals(new Set([state, memory, disk]).size, 3);
  }
  assertEquals(seen.size, 2);
});

test("a save is given up once, and its key is free then", async (dir) => {
  const staging = await snapshotStore(dir).stage(KEY);
  assertEquals(await snapshotStore(dir).stage(KEY), undefined);
  await staging![Symbol.asyncDispose]();
  assertEquals(await names(dir), []);
  await using next = await snapshotStore(dir).stage(KEY);
  // Another time it is no matter: the key is the next one's.
  await staging![Symbol.asyncDispose]();
  assertEquals(await snapshotStore(dir).stage(KEY), undefined);
  await Deno.stat(next!.dir);
});

test("a save that cannot begin gives its key back", async (dir) => {
  // The lock's path is as long as the system allows; that of staging is longer.
  let long = dir;
  const length = 4095 - `/.${KEY}.lock`.length;
  while (long.length < length) {
    const left = length - long.length - 1;
    long = join(long, "d".repeat(left > 202 ? 200 : left));
  }
  assertEquals(long.length, length);
  await Deno.mkdir(long, { recursive: true, mode: 0o700 });
  for (const _ of [1, 2]) {
    await assertRejects(() => snapshotStore(long).stage(KEY));
  }
});

test("a save without a state is none, and leaves what was there", async (dir) => {
  const before = await save(dir);
  {
    await using staging = await snapshotStore(dir).stage(KEY);
    await Deno.writeTextFile(staging!.disk, "disk");
    await assertRejects(() => staging!.place(), Deno.errors.NotFound);
  }
  assertEquals(await snapshotStore(dir).find(KEY), before);
  assertEquals(await names(dir), ["a.json", "a.qcow2", "a.state"]);
});

test("a save that fails while it is put into its place leaves nothing", async (dir) => {
  await save(dir);
  {
    await using staging = await snapshotStore(dir).stage(KEY);
    await Deno.writeTextFile(staging!.disk, "disk");
    await Deno.mkdir(staging!.state);
    await assertRejects(() => staging!.place(), Deno.errors.NotFound);
  }
  assertEquals(await names(dir), []);
});

test("a damaged machine is listed with its state's time, and what it takes", async (dir) => {
  const { path } = await save(dir);
  const time = new Date("2020-01-02T03:04:05Z");
  await Deno.utime(path, time, time);
  const iso = time.toISOString();
  assertEquals(await snapshotStore(dir).list(), [
    { key: KEY, path, bytes: 9, saved: iso, used: iso },
  ]);
});

test("a sweep leaves damaged machines, and a directory that others can read", async (dir) => {
  const { path } = await save(dir);
  await Deno.truncate(path, 1);
  const store = snapshotStore(dir);
  await Deno.mkdir(join(dir, `.staging-${OTHER}-0`));
  const before = await names(dir);
  await Deno.chmod(dir, 0o755);
  await store.sweep();
  assertEquals(await names(dir), before);
  await Deno.chmod(dir, 0o700);
  await store.sweep();
  assertEquals(await names(dir), ["a.json", "a.qcow2", "a.state"]);
});

test("a key whose lock cannot be asked for is not taken for a free one", async (dir) => {
  const saved = await save(dir);
  const lock = join(dir, `.${KEY}.lock`);
  await Deno.remove(lock);
  await Deno.mkdir(lock);
  await assertRejects(() => snapshotStore(dir).remove(saved));
  assertEquals(await snapshotStore(dir).find(KEY), saved);
});

test("use is noted in the note alone", async (dir) => {
  const { path } = await save(dir);
  const note = join(dir, `${KEY}.json`);
  const past = new Date(0);
  await Deno.utime(note, past, past);
  const before = await fingerprint(path);
  await snapshotStore(dir).touch(KEY);
  assertEquals(await fingerprint(path), before);
  const { atime, mtime } = await Deno.stat(note);
  for (const time of [atime, mtime]) {
    assertEquals(time!.getTime() > Date.now() - 60_000, true);
  }
});

test("nothing is made before a machine is saved", async (dir) => {
  const store = snapshotStore(dir);
  assertEquals(store.dir, dir);
  assertEquals(await store.list(), []);
  await store.sweep();
  await store.touch(KEY);
  assertEquals(await store.remove({ key: KEY }), false);
  await assertRejects(() => Deno.stat(dir), Deno.errors.NotFound);
});
