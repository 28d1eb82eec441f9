import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { basename, dirname, join } from "@std/path";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import { fingerprint } from "../../lib/system/files.ts";
import {
  fileOf,
  KEY,
  names,
  OTHER,
  save,
  STATE,
  test,
} from "../support/snapshots.ts";

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

test("a save without a state or a disk is none, and leaves what was there", async (dir) => {
  const before = await save(dir);
  for (const part of ["disk", "state"] as const) {
    await using staging = await snapshotStore(dir).stage(KEY);
    await Deno.writeTextFile(staging![part], part);
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
  const { path, disk } = await save(dir);
  const time = new Date("2020-01-02T03:04:05Z");
  await Deno.utime(path, time, time);
  const iso = time.toISOString();
  assertEquals(await snapshotStore(dir).list(), [
    { key: KEY, path, disk, bytes: STATE.length + 4, saved: iso, used: iso },
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

test("holes in a snapshot's memory stay, and do not count", async (dir) => {
  await using staging = await snapshotStore(dir).stage(KEY);
  await Deno.writeTextFile(staging!.state, STATE);
  await Deno.writeTextFile(staging!.disk, "");
  {
    using file = await Deno.open(staging!.memory, {
      write: true,
      createNew: true,
    });
    await file.truncate(2 ** 30);
    await file.seek(2 ** 29, Deno.SeekMode.Start);
    await file.write(new Uint8Array(4096).fill(1));
  }
  const { memory, bytes } = await staging!.place();
  assertEquals((await Deno.stat(memory!)).size, 2 ** 30);
  assert(bytes >= STATE.length + 4096 && bytes < 2 ** 20, `${bytes}`);
});

test("a save that is given up leaves what was there before", async (dir) => {
  const before = await save(dir);
  {
    await using staging = await snapshotStore(dir).stage(KEY);
    await Deno.writeTextFile(staging!.state, "half");
    assertEquals(await snapshotStore(dir).find(KEY), before);
  }
  assertEquals(await snapshotStore(dir).find(KEY), before);
  assertEquals(await names(dir), ["a.json", "a.qcow2", "a.state"]);
});

test("a save that cannot be finished leaves nothing to restore", async (dir) => {
  await save(dir);
  await using staging = await snapshotStore(dir).stage(KEY);
  await Deno.writeTextFile(staging!.disk, "disk");
  // What lies there in its place is moved, and noticed afterwards.
  await Deno.mkdir(staging!.state);
  const error = await staging!.place().then(() => undefined, (error) => error);
  assert(error instanceof Error);
  assertEquals(await snapshotStore(dir).find(KEY), undefined);
});

test("at each step of a save, the state is whole or not to be found", async (dir) => {
  await save(dir);
  let over = false;
  const seen = new Set<string>();
  const watching = (async () => {
    while (!over) {
      const state = await snapshotStore(dir).find(KEY);
      if (typeof state === "object") {
        assertEquals(state.bytes, STATE.length + 4);
        assert(state.disk);
      }
      seen.add(typeof state === "object" ? "whole" : "none");
    }
  })();
  for (let times = 0; times < 20; times++) await save(dir);
  over = true;
  await watching;
  assert(seen.has("whole"));
});

test("one process at a time saves a machine; others do not wait", async (dir) => {
  await using first = await snapshotStore(dir).stage(KEY);
  assert(first);
  assertEquals(await snapshotStore(dir).stage(KEY), undefined);
  await using other = await snapshotStore(dir).stage(OTHER);
  assert(other);
});

test("what a dead process left is swept by the next that saves", async (dir) => {
  const stale = join(dir, `.staging-${KEY}-00000000`);
  const foreign = join(dir, `.staging-${OTHER}-00000000`);
  await Deno.mkdir(dir, { mode: 0o700 });
  for (const path of [stale, foreign]) {
    await Deno.mkdir(path, { recursive: true });
    await Deno.writeTextFile(join(path, "state"), "half");
  }
  await using staging = await snapshotStore(dir).stage(KEY);
  for (const path of [stale, foreign]) {
    assertEquals(await Deno.stat(path).catch(() => "gone"), "gone");
  }
  await Deno.stat(join(staging!.state, ".."));
});

test("a sweep takes what the dead left, and nothing of the living", async (dir) => {
  await save(dir);
  await using alive = await snapshotStore(dir).stage(OTHER);
  await Deno.writeTextFile(alive!.state, STATE);
  await Deno.writeTextFile(alive!.disk, "");
  const third = "c".repeat(64);
  const left = [`.staging-${KEY}-0`, `.staging-${third}-0`];
  for (const name of left) await Deno.mkdir(join(dir, name));
  // Ends of a save that was cut off.
  for (const ending of ["qcow2", "json"]) {
    await Deno.writeTextFile(fileOf(dir, ending, third), "");
  }
  await Deno.writeTextFile(join(dir, "notes.txt"), "");
  await snapshotStore(dir).sweep();
  assertEquals(
    (await names(dir)).map((it) => it.replace(/-b-.*/, "-b")),
    [".staging-b", "a.json", "a.qcow2", "a.state", "notes.txt"],
  );
  assert(await alive!.place());
  await snapshotStore(join(dir, "none")).sweep();
});

test("a save that was killed before its last step is none, and is swept", async (dir) => {
  const saved = await save(dir);
  await Deno.remove(fileOf(dir, "json"));
  const store = snapshotStore(dir);
  assertEquals(await store.find(KEY), undefined);
  assertEquals(await store.list(), []);
  assertEquals(await store.remove(saved), false);
  await store.sweep();
  assertEquals(await names(dir), []);
});
