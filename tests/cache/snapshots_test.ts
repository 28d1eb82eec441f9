import { assert, assertEquals, assertRejects } from "@std/assert";
import { dirname, join } from "@std/path";
import {
  type Snapshot,
  snapshotDirOf,
  snapshotStore,
} from "../../lib/cache/snapshots.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import {
  DEVICE_STATE,
  OTHER_SNAPSHOT_KEY,
  saveSnapshot,
  SNAPSHOT_BYTES,
  SNAPSHOT_KEY,
  snapshotFile,
  snapshotFileNames,
  testWithSnapshots,
} from "../support/snapshots.ts";
import { ALICE, asRoot } from "../support/users.ts";
import { waitForNextChangeTime } from "../support/change_time.ts";

testWithSnapshots(
  "SnapshotStore.find() returns a snapshot with paths, size and times",
  async (dir) => {
    const before = Date.now();
    const placed = await saveSnapshot(dir);
    const { saved, used, ...found } = await snapshotStore(dir).find(
      SNAPSHOT_KEY,
    ) as Snapshot;
    assertEquals(found, {
      key: SNAPSHOT_KEY,
      path: snapshotFile(dir, "state"),
      memory: snapshotFile(dir, "memory"),
      disk: snapshotFile(dir, "qcow2"),
      bytes: SNAPSHOT_BYTES,
    });
    // A file system's clock is coarser.
    for (const time of [saved, used].map((it) => Date.parse(it))) {
      assert(time >= before - 2000 && time <= Date.now() + 2000, `${time}`);
    }
    assertEquals({ ...found, saved, used }, placed);
    assertEquals(await Deno.readTextFile(placed.path), DEVICE_STATE);
    assertEquals(await Deno.readTextFile(placed.memory), "memory");
    assertEquals(await Deno.readTextFile(placed.disk), "disk");
    assertEquals(await snapshotFileNames(dir), [
      "a.json",
      "a.memory",
      "a.qcow2",
      "a.state",
    ]);
  },
);

testWithSnapshots(
  "SnapshotStore.find() returns undefined for an unknown key",
  async (dir) => {
    assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), undefined);
    await saveSnapshot(dir);
    assertEquals(await snapshotStore(dir).find(OTHER_SNAPSHOT_KEY), undefined);
  },
);

Deno.test({
  name: "SnapshotStore saves snapshots readable by their owner only",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const path = join(dir.path, "machines");
    await saveSnapshot(path);
    const modeOf = async (path: string) =>
      (await Deno.stat(path)).mode! & 0o777;
    assertEquals(await modeOf(path), 0o700);
    for (const ending of ["state", "memory", "qcow2", "json"]) {
      assertEquals(await modeOf(snapshotFile(path, ending)), 0o600, ending);
    }
  },
});

/** Changes a byte and restores the times. */
async function flip(path: string) {
  await waitForNextChangeTime(dirname(path));
  const { atime, mtime } = await Deno.stat(path);
  {
    using file = await Deno.open(path, { write: true });
    await file.write(new Uint8Array([1]));
  }
  await Deno.utime(path, atime!, mtime!);
}

/** Ways to damage a snapshot, so that it must not be restored. */
const DAMAGES: Record<string, (dir: string) => Promise<void>> = {
  "has a truncated state file": (dir) =>
    Deno.truncate(snapshotFile(dir, "state"), 3),
  "has an empty state file": (dir) => Deno.truncate(snapshotFile(dir, "state")),
  "has a changed byte in the state file": (dir) =>
    flip(snapshotFile(dir, "state")),
  "has a changed byte in the disk file": (dir) =>
    flip(snapshotFile(dir, "qcow2")),
  "has no disk file": (dir) => Deno.remove(snapshotFile(dir, "qcow2")),
  "has a truncated memory file": (dir) =>
    Deno.truncate(snapshotFile(dir, "memory"), 3),
  "has an extended memory file": (dir) =>
    Deno.writeTextFile(snapshotFile(dir, "memory"), "more", { append: true }),
  "has a changed byte in the memory file": (dir) =>
    flip(snapshotFile(dir, "memory")),
  "has no memory file": (dir) => Deno.remove(snapshotFile(dir, "memory")),
  "has a link in place of the memory file": async (dir) => {
    const path = snapshotFile(dir, "memory");
    await Deno.rename(path, join(dir, "elsewhere"));
    await Deno.symlink(join(dir, "elsewhere"), path);
  },
  "has a FIFO in place of the memory file": async (dir) => {
    const path = snapshotFile(dir, "memory");
    await Deno.remove(path);
    const { code } = await runProcess("mkfifo", { args: [path] });
    assertEquals(code, 0);
  },
  "has another snapshot's memory file": async (dir) => {
    await saveSnapshot(dir, OTHER_SNAPSHOT_KEY);
    const foreign = snapshotFile(dir, "memory", OTHER_SNAPSHOT_KEY);
    await Deno.rename(foreign, snapshotFile(dir, "memory"));
  },
  "has a copy of another snapshot's state file": async (dir) => {
    await saveSnapshot(dir, OTHER_SNAPSHOT_KEY);
    const foreign = snapshotFile(dir, "state", OTHER_SNAPSHOT_KEY);
    // Both have the same size, and perhaps the same time.
    await waitForNextChangeTime(dir);
    await Deno.copyFile(foreign, snapshotFile(dir, "state"));
  },
  "has another snapshot's state file": async (dir) => {
    await saveSnapshot(dir, OTHER_SNAPSHOT_KEY);
    const foreign = snapshotFile(dir, "state", OTHER_SNAPSHOT_KEY);
    await Deno.rename(foreign, snapshotFile(dir, "state"));
  },
  "has truncated metadata": (dir) =>
    Deno.truncate(snapshotFile(dir, "json"), 9),
  ...Object.fromEntries(
    ["", "null", "[]", "{}", '"x"', '{"state":null}', '{"state":{}}'].map((
      text,
    ) => [
      `has ${text || "empty"} as metadata`,
      (dir) => Deno.writeTextFile(snapshotFile(dir, "json"), text),
    ]),
  ),
  "was saved by an older version without a memory file": async (
    dir,
  ) => {
    await Deno.remove(snapshotFile(dir, "memory"));
    const { memory: _, ...note } = JSON.parse(
      await Deno.readTextFile(snapshotFile(dir, "json")),
    );
    await Deno.writeTextFile(snapshotFile(dir, "json"), JSON.stringify(note));
  },
  "has another snapshot's metadata": async (dir) => {
    await saveSnapshot(dir, OTHER_SNAPSHOT_KEY);
    const foreign = snapshotFile(dir, "json", OTHER_SNAPSHOT_KEY);
    await Deno.copyFile(foreign, snapshotFile(dir, "json"));
  },
};

for (const [what, damage] of Object.entries(DAMAGES)) {
  testWithSnapshots(
    `SnapshotStore.find() reports a snapshot that ${what} as damaged`,
    async (dir) => {
      const state = await saveSnapshot(dir);
      await damage(dir);
      assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), "damaged");
      const listed = (await snapshotStore(dir).list()).find(({ key }) =>
        key === SNAPSHOT_KEY
      );
      assertEquals(await snapshotStore(dir).remove(listed!), true);
      assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), undefined);
      assertEquals(
        (await snapshotFileNames(dir)).filter((it) => it.startsWith("a.")),
        [],
      );
      assertEquals(await snapshotStore(dir).remove(state), false);
    },
  );
}

testWithSnapshots(
  "SnapshotStore.find() ignores a link or directory in place of the state file",
  async (dir) => {
    const { path } = await saveSnapshot(dir);
    await Deno.rename(path, `${path}.elsewhere`);
    await Deno.symlink(`${path}.elsewhere`, path);
    assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), undefined);
    await Deno.remove(path);
    await Deno.mkdir(join(path, "deep"), { recursive: true });
    assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), undefined);
    await saveSnapshot(dir);
    assertEquals(typeof await snapshotStore(dir).find(SNAPSHOT_KEY), "object");
  },
);

testWithSnapshots(
  "SnapshotStore.list() includes damaged snapshots",
  async (dir) => {
    assertEquals(await snapshotStore(dir).list(), []);
    const whole = await saveSnapshot(dir);
    await saveSnapshot(dir, OTHER_SNAPSHOT_KEY);
    await Deno.truncate(snapshotFile(dir, "state", OTHER_SNAPSHOT_KEY), 5);
    await Deno.writeTextFile(join(dir, "notes.state"), "");
    const [first, second, ...more] = await snapshotStore(dir).list();
    assertEquals(first, whole);
    assertEquals([second.key, second.bytes], [OTHER_SNAPSHOT_KEY, 15]);
    assertEquals(more, []);
  },
);

testWithSnapshots(
  "SnapshotStore.remove() keeps a newer snapshot of the same key",
  async (dir) => {
    const tried = await saveSnapshot(dir);
    // A file system's clock advances in steps of milliseconds.
    while ((await saveSnapshot(dir)).saved === tried.saved);
    assertEquals(await snapshotStore(dir).remove(tried), false);
    const now = await snapshotStore(dir).find(SNAPSHOT_KEY) as Snapshot;
    assertEquals(await snapshotStore(dir).remove(now), true);
    assertEquals(await snapshotFileNames(dir), []);
  },
);

testWithSnapshots(
  "SnapshotStore.remove() removes a damaged snapshot, whenever it was saved",
  async (dir) => {
    const { key } = await saveSnapshot(dir);
    await Deno.writeTextFile(snapshotFile(dir, "memory"), "changed");
    assertEquals(await snapshotStore(dir).remove({ key }), true);
    assertEquals(await snapshotFileNames(dir), []);
  },
);

testWithSnapshots(
  "SnapshotStore.remove() keeps a snapshot while its key is being saved",
  async (dir) => {
    const before = await saveSnapshot(dir);
    {
      await using _staging = await snapshotStore(dir).createStaging(
        SNAPSHOT_KEY,
      );
      assertEquals(await snapshotStore(dir).remove(before), false);
    }
    assertEquals(await snapshotStore(dir).remove(before), true);
    await Deno.remove(dir, { recursive: true });
    assertEquals(await snapshotStore(dir).remove(before), false);
  },
);

testWithSnapshots(
  "SnapshotStore.remove() removes a snapshot that is open, and the open file stays readable",
  async (dir) => {
    const state = await saveSnapshot(dir);
    using reader = await Deno.open(state.path);
    assertEquals(await snapshotStore(dir).remove(state), true);
    assertEquals(await new Response(reader.readable).text(), DEVICE_STATE);
  },
);

testWithSnapshots(
  "SnapshotStore.markUsed() updates the used time and keeps the snapshot valid",
  async (dir) => {
    const { used, ...before } = await saveSnapshot(dir);
    const past = new Date("2020-01-01T00:00:00Z");
    await Deno.utime(snapshotFile(dir, "json"), past, past);
    const old = await snapshotStore(dir).find(SNAPSHOT_KEY) as Snapshot;
    assertEquals(old, { ...before, used: past.toISOString() });
    await snapshotStore(dir).markUsed(SNAPSHOT_KEY);
    const now = await snapshotStore(dir).find(SNAPSHOT_KEY) as Snapshot;
    assert(now.used >= used.slice(0, 16), now.used);
    // A directory that cannot be written is ignored.
    await snapshotStore(join(dir, "none")).markUsed(SNAPSHOT_KEY);
  },
);

testWithSnapshots(
  "SnapshotStore ignores and refuses a directory that other users can access",
  async (dir) => {
    const saved = await saveSnapshot(dir);
    for (const mode of [0o755, 0o730, 0o777]) {
      await Deno.chmod(dir, mode);
      assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), undefined);
      assertEquals(await snapshotStore(dir).list(), []);
      await assertRejects(
        () => snapshotStore(dir).createStaging(OTHER_SNAPSHOT_KEY),
        Deno.errors.PermissionDenied,
        dir,
      );
    }
    await Deno.chmod(dir, 0o700);
    assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), saved);
    for (const ending of ["state", "memory", "qcow2", "json"]) {
      await Deno.chmod(snapshotFile(dir, ending), 0o666);
      assertEquals(
        await snapshotStore(dir).find(SNAPSHOT_KEY),
        "damaged",
        ending,
      );
      await Deno.chmod(snapshotFile(dir, ending), 0o600);
    }
  },
);

asRoot(
  "SnapshotStore.find() rejects snapshot files or directories that another user owns",
  async () => {
    await using place = await temporaryDir();
    const dir = join(place.path, "machines");
    for (const ending of ["state", "memory", "qcow2", "json"]) {
      await saveSnapshot(dir);
      await Deno.chown(snapshotFile(dir, ending), ALICE, ALICE);
      assertEquals(
        await snapshotStore(dir).find(SNAPSHOT_KEY),
        "damaged",
        ending,
      );
      await snapshotStore(dir).remove({ key: SNAPSHOT_KEY });
    }
    await saveSnapshot(dir);
    await Deno.chown(dir, ALICE, ALICE);
    assertEquals(await snapshotStore(dir).find(SNAPSHOT_KEY), undefined);
  },
);

asRoot(
  "snapshotDirOf() returns a directory beside the user's own image, else in the user's cache",
  async () => {
    await using place = await temporaryDir();
    const entry = join(place.path, SNAPSHOT_KEY);
    await Deno.mkdir(entry);
    const image = join(entry, "i.qcow2");
    const home = new Map([["HOME", "/home/me"]]);
    assertEquals(await snapshotDirOf(image, home), join(entry, "machines"));
    await Deno.chown(entry, ALICE, ALICE);
    const own = `/home/me/.cache/toolsmith/machines/${SNAPSHOT_KEY}`;
    assertEquals(await snapshotDirOf(image, home), own);
    const xdg = new Map([["XDG_CACHE_HOME", "/c"], ["HOME", "/home/me"]]);
    const there = `/c/toolsmith/machines/${SNAPSHOT_KEY}`;
    assertEquals(await snapshotDirOf(image, xdg), there);
    const relative = new Map([["XDG_CACHE_HOME", "c"], ["HOME", "/home/me"]]);
    assertEquals(await snapshotDirOf(image, relative), own);
    assertEquals(await snapshotDirOf(image, new Map()), undefined);
    // Other users could replace the directory itself.
    await Deno.chown(entry, 0, 0);
    await Deno.chmod(place.path, 0o777);
    assertEquals(await snapshotDirOf(image, home), own);
  },
);
