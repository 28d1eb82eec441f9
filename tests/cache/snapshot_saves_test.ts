import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { basename, dirname, join } from "@std/path";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import { readFileIdentity } from "../../lib/system/files.ts";
import {
  DEVICE_STATE,
  fillSnapshot,
  OTHER_SNAPSHOT_KEY,
  saveSnapshot,
  SNAPSHOT_BYTES,
  SNAPSHOT_KEY,
  snapshotFile,
  snapshotFileNames,
  testWithSnapshots,
} from "../support/snapshots.ts";

testWithSnapshots(
  "SnapshotStore.createStaging() makes an unpredictable directory private to this user",
  async (dir) => {
    const seen = new Set<string>();
    for (const key of [SNAPSHOT_KEY, OTHER_SNAPSHOT_KEY]) {
      await using staging = await snapshotStore(dir).createStaging(key);
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
  },
);

testWithSnapshots(
  "SnapshotStaging: disposing releases the key's lock, once",
  async (dir) => {
    const staging = await snapshotStore(dir).createStaging(SNAPSHOT_KEY);
    assertEquals(
      await snapshotStore(dir).createStaging(SNAPSHOT_KEY),
      undefined,
    );
    await staging![Symbol.asyncDispose]();
    assertEquals(await snapshotFileNames(dir), []);
    await using next = await snapshotStore(dir).createStaging(SNAPSHOT_KEY);
    // Disposing again has no effect on the next holder.
    await staging![Symbol.asyncDispose]();
    assertEquals(
      await snapshotStore(dir).createStaging(SNAPSHOT_KEY),
      undefined,
    );
    await Deno.stat(next!.dir);
  },
);

testWithSnapshots(
  "SnapshotStore.createStaging() releases the key's lock when it fails",
  async (dir) => {
    // The lock's path has the maximum length; that of the staging directory exceeds it.
    let long = dir;
    const length = 4095 - `/.${SNAPSHOT_KEY}.lock`.length;
    while (long.length < length) {
      const left = length - long.length - 1;
      long = join(long, "d".repeat(left > 202 ? 200 : left));
    }
    assertEquals(long.length, length);
    await Deno.mkdir(long, { recursive: true, mode: 0o700 });
    for (const _ of [1, 2]) {
      await assertRejects(() =>
        snapshotStore(long).createStaging(SNAPSHOT_KEY)
      );
    }
  },
);

testWithSnapshots(
  "SnapshotStaging.commit() rejects a missing file and keeps the previous snapshot",
  async (dir) => {
    const before = await saveSnapshot(dir);
    const parts = ["disk", "memory", "state"] as const;
    for (const missing of parts) {
      await using staging = await snapshotStore(dir).createStaging(
        SNAPSHOT_KEY,
      );
      for (const part of parts) {
        if (part !== missing) await Deno.writeTextFile(staging![part], part);
      }
      await assertRejects(() => staging!.commit(), Deno.errors.NotFound);
    }
    assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), before);
    assertEquals(await snapshotFileNames(dir), [
      "a.json",
      "a.memory",
      "a.qcow2",
      "a.state",
    ]);
  },
);

testWithSnapshots(
  "SnapshotStaging.commit() names a part that is not a file, and removes all files",
  async (dir) => {
    await saveSnapshot(dir);
    {
      await using staging = await snapshotStore(dir).createStaging(
        SNAPSHOT_KEY,
      );
      await Deno.writeTextFile(staging!.disk, "disk");
      await Deno.writeTextFile(staging!.memory, "memory");
      await Deno.mkdir(staging!.state);
      await assertRejects(
        () => staging!.commit(),
        Deno.errors.NotFound,
        `snapshot ${SNAPSHOT_KEY} has no state file`,
      );
    }
    assertEquals(await snapshotFileNames(dir), []);
  },
);

testWithSnapshots(
  "SnapshotStaging.commit() names a file that other users can write, and removes all files",
  async (dir) => {
    {
      await using staging = await snapshotStore(dir).createStaging(
        SNAPSHOT_KEY,
      );
      const { state, memory, disk } = staging!;
      for (const path of [state, memory, disk]) {
        await Deno.writeTextFile(path, "");
        await Deno.chmod(path, path === memory ? 0o666 : 0o600);
      }
      await assertRejects(
        () => staging!.commit(),
        Deno.errors.PermissionDenied,
        `${snapshotFile(dir, "memory")} can be written by other users`,
      );
    }
    assertEquals(await snapshotFileNames(dir), []);
  },
);

testWithSnapshots(
  "SnapshotStore.list() returns a damaged snapshot with time and size",
  async (dir) => {
    const { key, path, memory, disk } = await saveSnapshot(dir);
    const time = new Date("2020-01-02T03:04:05Z");
    await Deno.utime(path, time, time);
    const iso = time.toISOString();
    assertEquals(await snapshotStore(dir).list(), [
      { key, path, memory, disk, bytes: SNAPSHOT_BYTES, saved: iso, used: iso },
    ]);
  },
);

testWithSnapshots(
  "removeInterruptedSaves() keeps damaged snapshots, and skips a directory that others can read",
  async (dir) => {
    const { path } = await saveSnapshot(dir);
    await Deno.truncate(path, 1);
    const store = snapshotStore(dir);
    await Deno.mkdir(join(dir, `.staging-${OTHER_SNAPSHOT_KEY}-0`));
    const before = await snapshotFileNames(dir);
    await Deno.chmod(dir, 0o755);
    await store.removeInterruptedSaves();
    assertEquals(await snapshotFileNames(dir), before);
    await Deno.chmod(dir, 0o700);
    await store.removeInterruptedSaves();
    assertEquals(await snapshotFileNames(dir), [
      "a.json",
      "a.memory",
      "a.qcow2",
      "a.state",
    ]);
  },
);

testWithSnapshots(
  "SnapshotStore.remove() throws when the key's lock file cannot be opened",
  async (dir) => {
    const saved = await saveSnapshot(dir);
    const lock = join(dir, `.${SNAPSHOT_KEY}.lock`);
    await Deno.remove(lock);
    await Deno.mkdir(lock);
    await assertRejects(() => snapshotStore(dir).remove(saved));
    assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), saved);
  },
);

testWithSnapshots(
  "SnapshotStore.markUsed() changes only the metadata file's times",
  async (dir) => {
    const { path } = await saveSnapshot(dir);
    const note = join(dir, `${SNAPSHOT_KEY}.json`);
    const past = new Date(0);
    await Deno.utime(note, past, past);
    const before = await readFileIdentity(path);
    const begun = Date.now();
    await snapshotStore(dir).markUsed(SNAPSHOT_KEY);
    assertEquals(await readFileIdentity(path), before);
    const { atime, mtime } = await Deno.stat(note);
    for (const time of [atime, mtime]) {
      assertEquals(time!.getTime() >= begun, true);
    }
  },
);

testWithSnapshots(
  "SnapshotStore creates nothing before the first save",
  async (dir) => {
    const store = snapshotStore(dir);
    assertEquals(store.dir, dir);
    assertEquals(await store.list(), []);
    await store.removeInterruptedSaves();
    await store.markUsed(SNAPSHOT_KEY);
    assertEquals(await store.remove({ key: SNAPSHOT_KEY }), false);
    await assertRejects(() => Deno.stat(dir), Deno.errors.NotFound);
  },
);

testWithSnapshots(
  "SnapshotStaging.commit() keeps holes in the memory file and does not count them",
  async (dir) => {
    await using staging = await snapshotStore(dir).createStaging(SNAPSHOT_KEY);
    await Deno.writeTextFile(staging!.state, DEVICE_STATE);
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
    const { memory, bytes } = await staging!.commit();
    assertEquals((await Deno.stat(memory)).size, 2 ** 30);
    assert(bytes >= DEVICE_STATE.length + 4096 && bytes < 2 ** 20, `${bytes}`);
  },
);

testWithSnapshots(
  "SnapshotStaging: disposing keeps the previous snapshot",
  async (dir) => {
    const before = await saveSnapshot(dir);
    {
      await using staging = await snapshotStore(dir).createStaging(
        SNAPSHOT_KEY,
      );
      await Deno.writeTextFile(staging!.state, "half");
      assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), before);
    }
    assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), before);
    assertEquals(await snapshotFileNames(dir), [
      "a.json",
      "a.memory",
      "a.qcow2",
      "a.state",
    ]);
  },
);

testWithSnapshots(
  "SnapshotStaging.commit() leaves no snapshot when it fails",
  async (dir) => {
    await saveSnapshot(dir);
    await using staging = await snapshotStore(dir).createStaging(SNAPSHOT_KEY);
    await Deno.writeTextFile(staging!.disk, "disk");
    await Deno.writeTextFile(staging!.memory, "memory");
    // A directory in place of the state file is detected after the move.
    await Deno.mkdir(staging!.state);
    const error = await staging!.commit().then(
      () => undefined,
      (error) => error,
    );
    assert(error instanceof Error);
    assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), undefined);
  },
);

testWithSnapshots(
  "SnapshotStore.find() never sees a partly written snapshot",
  async (dir) => {
    await saveSnapshot(dir);
    let over = false;
    const seen = new Set<string>();
    const watching = (async () => {
      while (!over) {
        const state = await snapshotStore(dir).find(SNAPSHOT_KEY);
        if (typeof state === "object") {
          assertEquals(state.bytes, SNAPSHOT_BYTES);
        }
        seen.add(typeof state === "object" ? "whole" : "none");
      }
    })();
    for (let times = 0; times < 20 || !seen.has("whole"); times++) {
      await saveSnapshot(dir);
    }
    over = true;
    await watching;
  },
);

testWithSnapshots(
  "SnapshotStore.createStaging() returns undefined while another process saves the key",
  async (dir) => {
    await using first = await snapshotStore(dir).createStaging(SNAPSHOT_KEY);
    assert(first);
    assertEquals(
      await snapshotStore(dir).createStaging(SNAPSHOT_KEY),
      undefined,
    );
    await using other = await snapshotStore(dir).createStaging(
      OTHER_SNAPSHOT_KEY,
    );
    assert(other);
  },
);

testWithSnapshots(
  "SnapshotStore.createStaging() removes staging directories of dead processes",
  async (dir) => {
    const stale = join(dir, `.staging-${SNAPSHOT_KEY}-00000000`);
    const foreign = join(dir, `.staging-${OTHER_SNAPSHOT_KEY}-00000000`);
    await Deno.mkdir(dir, { mode: 0o700 });
    for (const path of [stale, foreign]) {
      await Deno.mkdir(path, { recursive: true });
      await Deno.writeTextFile(join(path, "state"), "half");
    }
    await using staging = await snapshotStore(dir).createStaging(SNAPSHOT_KEY);
    for (const path of [stale, foreign]) {
      assertEquals(await Deno.stat(path).catch(() => "gone"), "gone");
    }
    await Deno.stat(join(staging!.state, ".."));
  },
);

testWithSnapshots(
  "removeInterruptedSaves() removes files of dead processes only",
  async (dir) => {
    await saveSnapshot(dir);
    await using alive = await snapshotStore(dir).createStaging(
      OTHER_SNAPSHOT_KEY,
    );
    const third = "c".repeat(64);
    const left = [`.staging-${SNAPSHOT_KEY}-0`, `.staging-${third}-0`];
    for (const name of left) await Deno.mkdir(join(dir, name));
    // Files of an interrupted save.
    for (const ending of ["qcow2", "json"]) {
      await Deno.writeTextFile(snapshotFile(dir, ending, third), "");
    }
    await Deno.writeTextFile(join(dir, "notes.txt"), "");
    await snapshotStore(dir).removeInterruptedSaves();
    assertEquals(
      (await snapshotFileNames(dir)).map((it) => it.replace(/-b-.*/, "-b")),
      [".staging-b", "a.json", "a.memory", "a.qcow2", "a.state", "notes.txt"],
    );
    assert(await fillSnapshot(alive!));
    await snapshotStore(join(dir, "none")).removeInterruptedSaves();
  },
);

testWithSnapshots(
  "SnapshotStore ignores and removes a snapshot without metadata",
  async (dir) => {
    const saved = await saveSnapshot(dir);
    await Deno.remove(snapshotFile(dir, "json"));
    const store = snapshotStore(dir);
    assertEquals(await store.find(SNAPSHOT_KEY), undefined);
    assertEquals(await store.list(), []);
    assertEquals(await store.remove(saved), false);
    await store.removeInterruptedSaves();
    assertEquals(await snapshotFileNames(dir), []);
  },
);
