import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import {
  type Snapshot,
  snapshotDir,
  snapshotKey,
  snapshotStore,
} from "../../lib/cache/snapshots.ts";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import {
  fileOf,
  KEY,
  names,
  OTHER,
  save,
  STATE,
  test,
} from "../support/snapshots.ts";
import { ALICE, asRoot } from "../support/users.ts";

test("a saved machine is found with all that is known of it", async (dir) => {
  const before = Date.now();
  const placed = await save(dir);
  const { saved, used, ...found } = await snapshotStore(dir).find(
    KEY,
  ) as Snapshot;
  assertEquals(found, {
    key: KEY,
    path: fileOf(dir, "state"),
    disk: fileOf(dir, "qcow2"),
    bytes: STATE.length + 4,
  });
  // A file system's clock ticks more slowly.
  assert(Math.abs(Date.parse(saved) - before) < 60_000, saved);
  assert(Math.abs(Date.parse(used) - before) < 60_000, used);
  assertEquals({ ...found, saved, used }, placed);
  assertEquals(await Deno.readTextFile(placed.path), STATE);
  assertEquals(await Deno.readTextFile(placed.disk!), "disk");
  assertEquals(await names(dir), ["a.json", "a.qcow2", "a.state"]);
});

test("nothing is found where nothing was saved", async (dir) => {
  assertEquals(await snapshotStore(dir).find(KEY), undefined);
  await save(dir);
  assertEquals(await snapshotStore(dir).find(OTHER), undefined);
});

Deno.test({
  name: "only its owner can read a saved machine: memory holds secrets",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const path = join(dir.path, "machines");
    await save(path, KEY, "memory");
    const modeOf = async (path: string) =>
      (await Deno.stat(path)).mode! & 0o777;
    assertEquals(await modeOf(path), 0o700);
    for (const ending of ["state", "memory", "qcow2", "json"]) {
      assertEquals(await modeOf(fileOf(path, ending)), 0o600, ending);
    }
  },
});

/** Writes other bytes of the same size, and sets the times of before. */
async function flip(path: string) {
  // Deno tells the time of a change in whole seconds.
  await new Promise((done) => setTimeout(done, 1_100));
  const { atime, mtime } = await Deno.stat(path);
  {
    using file = await Deno.open(path, { write: true });
    await file.write(new Uint8Array([1]));
  }
  await Deno.utime(path, atime!, mtime!);
}

/** Each makes of a saved machine, with its disk, one that must not be tried. */
const DAMAGES: Record<string, (dir: string) => Promise<void>> = {
  "is shorter": (dir) => Deno.truncate(fileOf(dir, "state"), 3),
  "is empty": (dir) => Deno.truncate(fileOf(dir, "state")),
  "has another byte": (dir) => flip(fileOf(dir, "state")),
  "has another byte on its disk": (dir) => flip(fileOf(dir, "qcow2")),
  "has no disk any more": (dir) => Deno.remove(fileOf(dir, "qcow2")),
  "has less memory": (dir) => Deno.truncate(fileOf(dir, "memory"), 3),
  "has more memory": (dir) =>
    Deno.writeTextFile(fileOf(dir, "memory"), "more", { append: true }),
  "has another byte in its memory": (dir) => flip(fileOf(dir, "memory")),
  "has no memory any more": (dir) => Deno.remove(fileOf(dir, "memory")),
  "has a link for its memory": async (dir) => {
    const path = fileOf(dir, "memory");
    await Deno.rename(path, join(dir, "elsewhere"));
    await Deno.symlink(join(dir, "elsewhere"), path);
  },
  "has a FIFO for its memory": async (dir) => {
    const path = fileOf(dir, "memory");
    await Deno.remove(path);
    const { code } = await run("mkfifo", { args: [path] });
    assertEquals(code, 0);
  },
  "has the memory of another": async (dir) => {
    await save(dir, OTHER, "memory");
    const foreign = fileOf(dir, "memory", OTHER);
    await Deno.rename(foreign, fileOf(dir, "memory"));
  },
  "is a foreign one": async (dir) => {
    await save(dir, OTHER);
    const foreign = fileOf(dir, "state", OTHER);
    await Deno.copyFile(foreign, fileOf(dir, "state"));
  },
  "was put in its place": async (dir) => {
    await save(dir, OTHER);
    const foreign = fileOf(dir, "state", OTHER);
    await Deno.rename(foreign, fileOf(dir, "state"));
  },
  "has half a note": (dir) => Deno.truncate(fileOf(dir, "json"), 9),
  ...Object.fromEntries(
    ["", "null", "[]", "{}", '"x"', '{"state":null}', '{"state":{}}'].map((
      text,
    ) => [
      `has the note ${text || "of no byte"}`,
      (dir) => Deno.writeTextFile(fileOf(dir, "json"), text),
    ]),
  ),
  "has the note of another": async (dir) => {
    await save(dir, OTHER);
    const foreign = fileOf(dir, "json", OTHER);
    await Deno.copyFile(foreign, fileOf(dir, "json"));
  },
};

for (const [what, damage] of Object.entries(DAMAGES)) {
  test(`a saved machine that ${what} is damaged`, async (dir) => {
    const state = await save(dir, KEY, "memory");
    await damage(dir);
    assertEquals(await snapshotStore(dir).find(KEY), "damaged");
    const listed = (await snapshotStore(dir).list()).find(({ key }) =>
      key === KEY
    );
    assertEquals(await snapshotStore(dir).remove(listed!), true);
    assertEquals(await snapshotStore(dir).find(KEY), undefined);
    assertEquals((await names(dir)).filter((it) => it.startsWith("a.")), []);
    assertEquals(await snapshotStore(dir).remove(state), false);
  });
}

test("what is not a file is no saved machine", async (dir) => {
  const { path } = await save(dir);
  await Deno.rename(path, `${path}.elsewhere`);
  await Deno.symlink(`${path}.elsewhere`, path);
  assertEquals(await snapshotStore(dir).find(KEY), undefined);
  await Deno.remove(path);
  await Deno.mkdir(join(path, "deep"), { recursive: true });
  assertEquals(await snapshotStore(dir).find(KEY), undefined);
  await save(dir);
  assertEquals(typeof await snapshotStore(dir).find(KEY), "object");
});

test("saved machines are listed, the damaged ones too", async (dir) => {
  assertEquals(await snapshotStore(dir).list(), []);
  const whole = await save(dir);
  await save(dir, OTHER);
  await Deno.truncate(fileOf(dir, "state", OTHER), 5);
  await Deno.writeTextFile(join(dir, "notes.state"), "");
  const [first, second, ...more] = await snapshotStore(dir).list();
  assertEquals(first, whole);
  assertEquals([second.key, second.bytes], [OTHER, 9]);
  assertEquals(more, []);
});

test("a machine that is saved anew is not removed for an older one", async (dir) => {
  const tried = await save(dir);
  await new Promise((done) => setTimeout(done, 20));
  await save(dir);
  assertEquals(await snapshotStore(dir).remove(tried), false);
  const now = await snapshotStore(dir).find(KEY) as Snapshot;
  assertEquals(await snapshotStore(dir).remove(now), true);
  assertEquals(await names(dir), []);
});

test("while a machine is saved anew, the one before is not removed", async (dir) => {
  const before = await save(dir);
  {
    await using _staging = await snapshotStore(dir).stage(KEY);
    assertEquals(await snapshotStore(dir).remove(before), false);
  }
  assertEquals(await snapshotStore(dir).remove(before), true);
  await Deno.remove(dir, { recursive: true });
  assertEquals(await snapshotStore(dir).remove(before), false);
});

test("a removed machine that is being restored is read to its end", async (dir) => {
  const state = await save(dir);
  using reader = await Deno.open(state.path);
  assertEquals(await snapshotStore(dir).remove(state), true);
  assertEquals(await new Response(reader.readable).text(), STATE);
});

test("use is noted, and does not damage", async (dir) => {
  const { used, ...before } = await save(dir);
  const past = new Date("2020-01-01T00:00:00Z");
  await Deno.utime(fileOf(dir, "json"), past, past);
  const old = await snapshotStore(dir).find(KEY) as Snapshot;
  assertEquals(old, { ...before, used: past.toISOString() });
  await snapshotStore(dir).touch(KEY);
  const now = await snapshotStore(dir).find(KEY) as Snapshot;
  assert(now.used >= used.slice(0, 16), now.used);
  // A directory that cannot be written is not worth an error.
  await snapshotStore(join(dir, "none")).touch(KEY);
});

Deno.test("each part of what has to match makes another key", async () => {
  const parts = { digest: "x", args: ["-m", "512M"], program: { size: 1 } };
  const keys = await Promise.all([
    parts,
    { ...parts, digest: "y" },
    { ...parts, args: ["-m", "513M"] },
    { ...parts, args: ["-m 512M"] },
    { ...parts, program: { size: 2 } },
    { ...parts, cpu: "z" },
  ].map(snapshotKey));
  assertEquals(new Set(keys).size, keys.length);
  assertEquals(await snapshotKey({ ...parts }), keys[0]);
  for (const key of keys) assert(/^[0-9a-f]{64}$/.test(key));
});

test("snapshots in a directory that others can read or write are none, and none are put there", async (dir) => {
  const saved = await save(dir);
  for (const mode of [0o755, 0o730, 0o777]) {
    await Deno.chmod(dir, mode);
    assertEquals(await snapshotStore(dir).find(KEY), undefined);
    assertEquals(await snapshotStore(dir).list(), []);
    await assertRejects(
      () => snapshotStore(dir).stage(OTHER),
      Deno.errors.PermissionDenied,
      dir,
    );
  }
  await Deno.chmod(dir, 0o700);
  assertEquals(await snapshotStore(dir).find(KEY), saved);
  for (const ending of ["state", "qcow2", "json"]) {
    await Deno.chmod(fileOf(dir, ending), 0o666);
    assertEquals(await snapshotStore(dir).find(KEY), "damaged", ending);
    await Deno.chmod(fileOf(dir, ending), 0o600);
  }
});

asRoot(
  "a snapshot of which another user owns a part is damaged, and none where the directory is another's",
  async () => {
    await using place = await temporaryDir();
    const dir = join(place.path, "machines");
    for (const ending of ["state", "qcow2", "json"]) {
      await save(dir);
      await Deno.chown(fileOf(dir, ending), ALICE, ALICE);
      assertEquals(await snapshotStore(dir).find(KEY), "damaged", ending);
      await snapshotStore(dir).remove({ key: KEY });
    }
    await save(dir);
    await Deno.chown(dir, ALICE, ALICE);
    assertEquals(await snapshotStore(dir).find(KEY), undefined);
  },
);

asRoot(
  "snapshots lie beside an own image, and else in the user's own cache",
  async () => {
    await using place = await temporaryDir();
    const entry = join(place.path, KEY);
    await Deno.mkdir(entry);
    const image = join(entry, "i.qcow2");
    const home = new Map([["HOME", "/home/me"]]);
    assertEquals(await snapshotDir(image, home), join(entry, "machines"));
    await Deno.chown(entry, ALICE, ALICE);
    const own = `/home/me/.cache/toolsmith/machines/${KEY}`;
    assertEquals(await snapshotDir(image, home), own);
    const xdg = new Map([["XDG_CACHE_HOME", "/c"], ["HOME", "/home/me"]]);
    const there = `/c/toolsmith/machines/${KEY}`;
    assertEquals(await snapshotDir(image, xdg), there);
    const relative = new Map([["XDG_CACHE_HOME", "c"], ["HOME", "/home/me"]]);
    assertEquals(await snapshotDir(image, relative), own);
    assertEquals(await snapshotDir(image, new Map()), undefined);
    // Others could replace the directory itself.
    await Deno.chown(entry, 0, 0);
    await Deno.chmod(place.path, 0o777);
    assertEquals(await snapshotDir(image, home), own);
  },
);
