import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  findState,
  listStates,
  removeState,
  type SavedState,
  stageState,
  stateKey,
  sweepStates,
  touchState,
} from "../lib/saved_states.ts";
import { temporaryFolder } from "./_folder.ts";

const KEY = "a".repeat(64);
const OTHER = "b".repeat(64);
const MEMORY = "memory and devices";

/** Runs a test with a folder of saved machines. */
function test(name: string, body: (folder: string) => Promise<void>) {
  Deno.test(name, async () => {
    await using folder = await temporaryFolder();
    await body(join(folder.path, "machines"));
  });
}

/** Saves a machine, with a disk if it has written to one. */
async function save(folder: string, key = KEY, disk?: string) {
  await using staging = await stageState(folder, key);
  const { state, disk: file, place } = staging!;
  await Deno.writeTextFile(state, MEMORY, { mode: 0o600 });
  if (disk) await Deno.writeTextFile(file, disk, { mode: 0o600 });
  return await place();
}

const fileOf = (folder: string, ending: string, key = KEY) =>
  join(folder, `${key}.${ending}`);

/** Names of all files but locks, which stay behind. */
async function files(folder: string): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of Deno.readDir(folder)) {
    if (!name.endsWith(".lock")) names.push(name.replace(KEY, "a"));
  }
  return names.sort();
}

test("a saved machine is found with all that is known of it", async (folder) => {
  const before = Date.now();
  const placed = await save(folder, KEY, "disk");
  const { saved, used, ...found } = await findState(folder, KEY) as SavedState;
  assertEquals(found, {
    key: KEY,
    path: fileOf(folder, "state"),
    disk: fileOf(folder, "qcow2"),
    bytes: MEMORY.length + 4,
  });
  // A file system's clock ticks more slowly.
  assert(Math.abs(Date.parse(saved) - before) < 60_000, saved);
  assert(Math.abs(Date.parse(used) - before) < 60_000, used);
  assertEquals({ ...found, saved, used }, placed);
  assertEquals(await Deno.readTextFile(placed.path), MEMORY);
  assertEquals(await Deno.readTextFile(placed.disk!), "disk");
  assertEquals(await files(folder), ["a.json", "a.qcow2", "a.state"]);
});

test("nothing is found where nothing was saved", async (folder) => {
  assertEquals(await findState(folder, KEY), undefined);
  await save(folder);
  assertEquals(await findState(folder, OTHER), undefined);
});

Deno.test({
  name: "only its owner can read a saved machine: memory holds secrets",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using folder = await temporaryFolder();
    const path = join(folder.path, "machines");
    await save(path, KEY, "disk");
    const modeOf = async (path: string) =>
      (await Deno.stat(path)).mode! & 0o777;
    assertEquals(await modeOf(path), 0o700);
    for (const ending of ["state", "qcow2", "json"]) {
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
const DAMAGES: Record<string, (folder: string) => Promise<void>> = {
  "is shorter": (folder) => Deno.truncate(fileOf(folder, "state"), 3),
  "is empty": (folder) => Deno.truncate(fileOf(folder, "state")),
  "has another byte": (folder) => flip(fileOf(folder, "state")),
  "has another byte on its disk": (folder) => flip(fileOf(folder, "qcow2")),
  "has no disk any more": (folder) => Deno.remove(fileOf(folder, "qcow2")),
  "is a foreign one": async (folder) => {
    await save(folder, OTHER, "disk");
    const foreign = fileOf(folder, "state", OTHER);
    await Deno.copyFile(foreign, fileOf(folder, "state"));
  },
  "was put in its place": async (folder) => {
    await save(folder, OTHER, "disk");
    const foreign = fileOf(folder, "state", OTHER);
    await Deno.rename(foreign, fileOf(folder, "state"));
  },
  "has no note": (folder) => Deno.remove(fileOf(folder, "json")),
  "has half a note": (folder) => Deno.truncate(fileOf(folder, "json"), 9),
  ...Object.fromEntries(
    ["", "null", "[]", "{}", '"x"', '{"state":null}', '{"state":{}}'].map((
      text,
    ) => [
      `has the note ${text || "of no byte"}`,
      (folder) => Deno.writeTextFile(fileOf(folder, "json"), text),
    ]),
  ),
  "has the note of another": async (folder) => {
    await save(folder, OTHER, "disk");
    const foreign = fileOf(folder, "json", OTHER);
    await Deno.copyFile(foreign, fileOf(folder, "json"));
  },
};

for (const [what, damage] of Object.entries(DAMAGES)) {
  test(`a saved machine that ${what} is damaged`, async (folder) => {
    const state = await save(folder, KEY, "disk");
    await damage(folder);
    assertEquals(await findState(folder, KEY), "damaged");
    const listed = (await listStates(folder)).find(({ key }) => key === KEY);
    assertEquals(await removeState(folder, listed!), true);
    assertEquals(await findState(folder, KEY), undefined);
    assertEquals((await files(folder)).filter((it) => it.startsWith("a.")), []);
    assertEquals(await removeState(folder, state), false);
  });
}

test("what is not a file is no saved machine", async (folder) => {
  const { path } = await save(folder);
  await Deno.rename(path, `${path}.elsewhere`);
  await Deno.symlink(`${path}.elsewhere`, path);
  assertEquals(await findState(folder, KEY), undefined);
  await Deno.remove(path);
  await Deno.mkdir(join(path, "deep"), { recursive: true });
  assertEquals(await findState(folder, KEY), undefined);
  await save(folder);
  assertEquals(typeof await findState(folder, KEY), "object");
});

test("a machine that wrote no disk does not get an older one's", async (folder) => {
  await save(folder, KEY, "disk");
  const { disk, bytes } = await save(folder);
  assertEquals([disk, bytes], [undefined, MEMORY.length]);
  assertEquals(await files(folder), ["a.json", "a.state"]);
});

test("a save that is given up leaves what was there before", async (folder) => {
  const before = await save(folder);
  {
    await using staging = await stageState(folder, KEY);
    await Deno.writeTextFile(staging!.state, "half");
    assertEquals(await findState(folder, KEY), before);
  }
  assertEquals(await findState(folder, KEY), before);
  assertEquals(await files(folder), ["a.json", "a.state"]);
});

test("a save that cannot be finished leaves nothing to restore", async (folder) => {
  await save(folder, KEY, "disk");
  await using staging = await stageState(folder, KEY);
  await Deno.writeTextFile(staging!.state, MEMORY);
  // The note cannot be written where there is a folder.
  await Deno.mkdir(staging!.state.replace(/state$/, "json"));
  const error = await staging!.place().then(() => undefined, (error) => error);
  assert(error instanceof Error);
  assertEquals(await findState(folder, KEY), undefined);
});

test("at each step of a save, the state is whole or not to be found", async (folder) => {
  await save(folder, KEY, "disk");
  let over = false;
  const seen = new Set<string>();
  const watching = (async () => {
    while (!over) {
      const state = await findState(folder, KEY);
      if (typeof state === "object") {
        assertEquals(state.bytes, MEMORY.length + 4);
        assert(state.disk);
      }
      seen.add(typeof state === "object" ? "whole" : "none");
    }
  })();
  for (let times = 0; times < 20; times++) await save(folder, KEY, "disk");
  over = true;
  await watching;
  assert(seen.has("whole"));
});

test("one process at a time saves a machine; others do not wait", async (folder) => {
  await using first = await stageState(folder, KEY);
  assert(first);
  assertEquals(await stageState(folder, KEY), undefined);
  await using other = await stageState(folder, OTHER);
  assert(other);
});

test("what a dead process left is swept by the next that saves", async (folder) => {
  const stale = join(folder, `.staging-${KEY}-00000000`);
  const foreign = join(folder, `.staging-${OTHER}-00000000`);
  for (const path of [stale, foreign]) {
    await Deno.mkdir(path, { recursive: true });
    await Deno.writeTextFile(join(path, "state"), "half");
  }
  await using staging = await stageState(folder, KEY);
  assertEquals(await Deno.stat(stale).catch(() => "gone"), "gone");
  await Deno.stat(foreign);
  await Deno.stat(join(staging!.state, ".."));
});

test("a sweep takes what the dead left, and nothing of the living", async (folder) => {
  await save(folder, KEY, "disk");
  await using alive = await stageState(folder, OTHER);
  await Deno.writeTextFile(alive!.state, MEMORY);
  const third = "c".repeat(64);
  const left = [`.staging-${KEY}-0`, `.staging-${third}-0`];
  for (const name of left) await Deno.mkdir(join(folder, name));
  // Ends of a save that was cut off.
  for (const ending of ["qcow2", "json"]) {
    await Deno.writeTextFile(fileOf(folder, ending, third), "");
  }
  await Deno.writeTextFile(join(folder, "notes.txt"), "");
  await sweepStates(folder);
  assertEquals(
    (await files(folder)).map((it) => it.replace(/b{64}-.*/, "b")),
    [".staging-b", "a.json", "a.qcow2", "a.state", "notes.txt"],
  );
  assert(await alive!.place());
  await sweepStates(join(folder, "none"));
});

test("saved machines are listed, the damaged ones too", async (folder) => {
  assertEquals(await listStates(folder), []);
  const whole = await save(folder);
  await save(folder, OTHER);
  await Deno.truncate(fileOf(folder, "state", OTHER), 5);
  await Deno.writeTextFile(join(folder, "notes.state"), "");
  const [first, second, ...more] = await listStates(folder);
  assertEquals(first, whole);
  assertEquals([second.key, second.bytes], [OTHER, 5]);
  assertEquals(more, []);
});

test("a machine that is saved anew is not removed for an older one", async (folder) => {
  const tried = await save(folder);
  await new Promise((done) => setTimeout(done, 20));
  await save(folder);
  assertEquals(await removeState(folder, tried), false);
  const now = await findState(folder, KEY) as SavedState;
  assertEquals(await removeState(folder, now), true);
  assertEquals(await files(folder), []);
});

test("while a machine is saved anew, the one before is not removed", async (folder) => {
  const before = await save(folder);
  {
    await using _staging = await stageState(folder, KEY);
    assertEquals(await removeState(folder, before), false);
  }
  assertEquals(await removeState(folder, before), true);
  await Deno.remove(folder, { recursive: true });
  assertEquals(await removeState(folder, before), false);
});

test("a removed machine that is being restored is read to its end", async (folder) => {
  const state = await save(folder);
  using reader = await Deno.open(state.path);
  assertEquals(await removeState(folder, state), true);
  assertEquals(await new Response(reader.readable).text(), MEMORY);
});

test("use is noted, and does not damage", async (folder) => {
  const { used, ...before } = await save(folder);
  const past = new Date("2020-01-01T00:00:00Z");
  await Deno.utime(fileOf(folder, "json"), past, past);
  const old = await findState(folder, KEY) as SavedState;
  assertEquals(old, { ...before, used: past.toISOString() });
  await touchState(folder, KEY);
  const now = await findState(folder, KEY) as SavedState;
  assert(now.used >= used.slice(0, 16), now.used);
  // A folder that cannot be written is not worth an error.
  await touchState(join(folder, "none"), KEY);
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
  ].map(stateKey));
  assertEquals(new Set(keys).size, keys.length);
  assertEquals(await stateKey({ ...parts }), keys[0]);
  for (const key of keys) assert(/^[0-9a-f]{64}$/.test(key));
});
