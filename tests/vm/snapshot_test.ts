import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { SnapshotOptions } from "../../lib/vm/options.ts";
import { emitter } from "../../lib/events.ts";
import type { StartMachineOptions } from "../../lib/qemu/machine.ts";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import { findSlots } from "../../lib/vm/_snapshot.ts";
import { type Dir, temporaryDir } from "../support/directory.ts";
import { collect } from "../support/guest.ts";

interface Place {
  dir: Dir;
  plan: StartMachineOptions;
  options: SnapshotOptions;
}

/** Runs a test with a machine that has a place for its state. */
function test(name: string, body: (place: Place) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const program = join(dir.path, "qemu");
    await Deno.writeTextFile(program, "the program");
    await body({
      dir,
      plan: {
        program,
        disk: "/images/a.qcow2",
        ephemeral: true,
        dir: join(dir.path, "machine"),
        accelerator: "tcg",
        memory: 512,
        cpus: 2,
        shares: [{ path: "/work", tag: "work", writable: false }],
        extra: [],
      },
      options: {
        dir: join(dir.path, "machines"),
        digest: `sha256:${"a".repeat(64)}`,
      },
    });
  });
}

/** Looks for a place, and at what is said of it. */
async function look({ plan, options }: Place) {
  const { events, onEvent } = collect("warning");
  const [slot] = await findSlots(plan, {
    snapshots: options,
    emit: emitter(onEvent),
  });
  return { slot, said: events.map(({ message }) => message) };
}

/** Puts a state where one is looked for. */
async function fill(place: Place) {
  const { slot } = await look(place);
  await using staging = await snapshotStore(place.options.dir).stage(slot!.key);
  await Deno.writeTextFile(staging!.state, "memory");
  await Deno.writeTextFile(staging!.disk, "disk");
  return await staging!.place();
}

test("what has to match makes the key, and nothing else", async (place) => {
  const { plan, options } = place;
  const keyOf = async (more: Partial<Place>) =>
    (await look({ ...place, ...more })).slot?.key;
  const key = await keyOf({});
  const differ: Partial<StartMachineOptions>[] = [
    { memory: 513 },
    { disk: "/elsewhere/a.qcow2" },
    { cpus: 1 },
    { accelerator: "kvm" },
    { extra: ["-device", "virtio-balloon-pci"] },
    { extra: ["-device", "virtio-keyboard-pci"] },
    { os: "darwin" },
    { shares: [] },
  ];
  const keys = await Promise.all(
    differ.map((more) => keyOf({ plan: { ...plan, ...more } })),
  );
  keys.push(
    await keyOf({
      options: { ...options, digest: `sha256:${"b".repeat(64)}` },
    }),
  );
  // The next version of QEMU, in the same place.
  await Deno.writeTextFile(`${plan.program}.new`, "the program, improved");
  await Deno.rename(`${plan.program}.new`, plan.program);
  keys.push(await keyOf({}));
  assertEquals(new Set([key, ...keys]).size, differ.length + 3);
  assert(keys.every((it) => it !== undefined));

  const alike: Partial<StartMachineOptions>[] = [
    { dir: "/elsewhere" },
    { shares: [{ path: "/home", tag: "work", writable: false }] },
    { shares: [...plan.shares, { path: "/out", tag: "out", writable: true }] },
  ];
  for (const more of alike) {
    assertEquals(await keyOf({ plan: { ...plan, ...more } }), keys.at(-1));
  }
  // The same package on another host has other inodes, and times of change.
  const { atime, mtime } = await Deno.stat(plan.program);
  await Deno.copyFile(plan.program, `${plan.program}.new`);
  await Deno.utime(`${plan.program}.new`, atime!, mtime!);
  await Deno.rename(`${plan.program}.new`, plan.program);
  assertEquals(await keyOf({}), keys.at(-1));
  await Deno.utime(plan.program, atime!, new Date(mtime!.getTime() + 1000));
  assert(await keyOf({}) !== keys.at(-1));
});

test("there is no place where something cannot be told", async (place) => {
  const { plan } = place;
  const refused: Partial<StartMachineOptions>[] = [
    { ephemeral: false },
    { program: join(plan.program, "..", "none") },
    { extra: ["-drive", "file=data.img,format=raw,if=virtio"] },
    { extra: ["-hdb", "data.img"] },
    { extra: ["--kernel", "bzImage"] },
    { extra: ["-netdev", "user,id=n"] },
    { extra: ["-device", "loader,file=rom.bin"] },
    { extra: ["-device", "pci-testdev,memdev=/dev/shm/a"] },
  ];
  for (const more of refused) {
    const { slot } = await look({ ...place, plan: { ...plan, ...more } });
    assertEquals(slot, undefined, JSON.stringify(more));
  }
});

test("a state that was saved is found, unless it is not wanted", async (place) => {
  assertEquals((await look(place)).slot?.found, undefined);
  const saved = await fill(place);
  const { slot, said } = await look(place);
  assertEquals([slot?.found?.path, said], [saved.path, []]);
  const options = { ...place.options, restore: false };
  const fresh = await look({ ...place, options });
  assertEquals([fresh.slot?.found, fresh.said], [undefined, []]);
  assertEquals(fresh.slot?.key, slot?.key);
});

test("a damaged state is removed, in one line", async (place) => {
  const { path } = await fill(place);
  await Deno.truncate(path, 3);
  const { slot, said } = await look(place);
  assertEquals(slot?.found, undefined);
  assertEquals(said, [
    "The snapshot was removed: its file was changed; booting instead",
  ]);
  assertEquals((await look(place)).said, []);
});

test("a state that is replaced meanwhile is noticed, and stays", async (place) => {
  await fill(place);
  const { slot } = await look(place);
  assertEquals(await slot!.unchanged(), true);
  await new Promise((done) => setTimeout(done, 20));
  const { path } = await fill(place);
  assertEquals(await slot!.unchanged(), false);
  await slot!.drop("it was replaced");
  assertEquals(slot!.found, undefined);
  assertEquals((await look(place)).slot?.found?.path, path);
});

test("while another process saves, a damaged state does not hold a boot", async (place) => {
  const { path, key } = await fill(place);
  await Deno.truncate(path, 3);
  await using _staging = await snapshotStore(place.options.dir).stage(key);
  const { slot, said } = await look(place);
  assertEquals(slot?.found, undefined);
  assertEquals(said, [
    "The snapshot is not used: its file was changed; booting instead",
  ]);
  await Deno.stat(path);
});

test("arguments for QEMU that name a file of the host are never saved", async (place) => {
  const { plan } = place;
  const slot = async (...extra: string[]) =>
    (await look({ ...place, plan: { ...plan, extra } })).slot;
  assert(await slot("-device", "virtio-keyboard-pci"));
  assertEquals(await slot("second.img"), undefined);
  assertEquals(await slot("-cpu", "max", "second.img"), undefined);
  const rom = ["-device", "virtio-net-pci,romfile=my.rom"];
  assertEquals(await slot(...rom), undefined);
});

test("another QEMU in the same place does not restore what the first has saved", async (place) => {
  const { key } = await fill(place);
  await Deno.writeTextFile(place.plan.program, "its next version");
  const { slot } = await look(place);
  assertEquals(slot?.found, undefined);
  assert(slot?.key !== key);
});

test("a machine is saved where there is room for its memory, and what came of it is said once", async (place) => {
  const { plan, options } = place;
  const { events, onEvent } = collect("state_saved");
  const warned = collect("warning");
  const emit = emitter((event) => {
    onEvent(event);
    warned.onEvent(event);
  });
  const find = (more: Partial<Place>) =>
    findSlots({ ...plan, ...more.plan }, {
      snapshots: { ...options, ...more.options },
      emit,
    });
  const [mapped, read] = await find({});
  assertEquals([mapped.mapped, read.mapped], [true, false]);
  assert(mapped.key !== read.key);
  assertEquals([await mapped.hasRoom(), await read.hasRoom()], [true, true]);
  const huge = { ...plan, memory: 2 ** 40 };
  const [none, any] = await find({ plan: huge });
  assertEquals([await none.hasRoom(), await any.hasRoom()], [false, true]);
  // Nothing is known of a disk whose directories are not there.
  const lost = { ...options, dir: join(options.dir, "no", "such", "dir") };
  const [unknown] = await find({ plan: huge, options: lost });
  assertEquals(await unknown.hasRoom(), true);
  const unwanted = { ...options, save: false };
  const [unsaved] = await find({ options: unwanted });
  assertEquals(await unsaved.stage(), undefined);
  await mapped.settled();
  assertEquals(events, []);
  const staging = (await mapped.stage())!;
  // Another process would save the same.
  assertEquals(await (await find({}))[0].stage(), undefined);
  await Deno.writeTextFile(staging.state, "devices", { mode: 0o600 });
  await Deno.writeTextFile(staging.memory, "memory", { mode: 0o600 });
  await Deno.writeTextFile(staging.disk, "disk", { mode: 0o600 });
  mapped.place(staging, 12.6);
  await mapped.settled();
  await mapped.settled();
  assertEquals(events.map(({ stoodMs }) => stoodMs), [13]);
  assert(events[0].bytes > 0 && events[0].path.endsWith(".state"));
  assertEquals(await Deno.stat(staging.dir).catch(() => "gone"), "gone");
  assertEquals(warned.events, []);
  // Of two, the better is looked for first, and the other then not at all.
  const [found, other] = await find({});
  assertEquals([found.found?.key, other.found], [mapped.key, undefined]);
});

test("a machine that cannot be saved is a warning, not a failure", async (place) => {
  const { plan, options } = place;
  const { events, onEvent } = collect("warning");
  const emit = emitter(onEvent);
  const [slot] = await findSlots(plan, { snapshots: options, emit });
  const staging = (await slot.stage())!;
  // Nothing was written that could be placed.
  slot.place(staging, 1);
  await slot.settled();
  slot.fail(new Error("QEMU has refused"));
  await Deno.remove(options.dir, { recursive: true });
  await Deno.writeTextFile(options.dir, "a file in its place");
  assertEquals(await slot.stage(), undefined);
  const said = events.map(({ message }) => message);
  assert(said.every((it) => it.startsWith("The machine is not saved: ")));
  assertEquals([said.length, said[1]], [
    ...[3, "The machine is not saved: QEMU has refused"],
  ]);
  assertEquals(await findSlots(plan, { snapshots: undefined, emit }), []);
});

test("a snapshot that is used is noted to be, for who looks for unused ones", async (place) => {
  const { path } = await fill(place);
  const json = path.replace(/\.state$/, ".json");
  await Deno.utime(json, 1e9, 1e9);
  await look(place);
  assert((await Deno.stat(json)).mtime!.getTime() > 1e12);
});
