import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { SnapshotOptions } from "../../lib/vm/boot_options.ts";
import { createEmitter } from "../../lib/events.ts";
import type { QemuPlan } from "../../lib/qemu/qemu_process.ts";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import { findSnapshotSlot } from "../../lib/vm/_snapshot_slot.ts";
import { type TemporaryDir, temporaryDir } from "../support/directory.ts";
import { collectEvents } from "../support/guest.ts";
import { fillSnapshot as fillStaging } from "../support/snapshots.ts";

interface Place {
  dir: TemporaryDir;
  plan: QemuPlan;
  options: SnapshotOptions;
}

/** Defines a test with a plan and a snapshot directory. */
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

/** Finds the slot; returns it with the warnings. */
async function look({ plan, options }: Place) {
  const { events, onEvent } = collectEvents("warning");
  const slot = await findSnapshotSlot(
    plan,
    { snapshots: options },
    createEmitter(onEvent),
  );
  return { slot, said: events.map(({ message }) => message) };
}

/** Saves a snapshot to the slot. */
async function fill(place: Place) {
  const { slot } = await look(place);
  await using staging = await snapshotStore(place.options.dir).createStaging(
    slot!.key,
  );
  return await fillStaging(staging!);
}

test("findSnapshotSlot() derives the key from everything that must match, and nothing else", async (place) => {
  const { plan, options } = place;
  const keyOf = async (more: Partial<Place>) =>
    (await look({ ...place, ...more })).slot?.key;
  const key = await keyOf({});
  const differ: Partial<QemuPlan>[] = [
    { memory: 513 },
    { disk: "/elsewhere/a.qcow2" },
    { cpus: 1 },
    { accelerator: "kvm" },
    { extra: ["-device", "virtio-balloon-pci"] },
    { extra: ["-device", "virtio-keyboard-pci"] },
    { hostOs: "darwin" },
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
  // The next version of QEMU at the same path.
  await Deno.writeTextFile(`${plan.program}.new`, "the program, improved");
  await Deno.rename(`${plan.program}.new`, plan.program);
  keys.push(await keyOf({}));
  assertEquals(new Set([key, ...keys]).size, differ.length + 3);
  assert(keys.every((it) => it !== undefined));

  const alike: Partial<QemuPlan>[] = [
    { shares: [{ path: "/home", tag: "work", writable: false }] },
    { shares: [...plan.shares, { path: "/out", tag: "out", writable: true }] },
  ];
  for (const more of alike) {
    assertEquals(await keyOf({ plan: { ...plan, ...more } }), keys.at(-1));
  }
  // The same package on another host differs in inode and change time.
  const { atime, mtime } = await Deno.stat(plan.program);
  await Deno.copyFile(plan.program, `${plan.program}.new`);
  await Deno.utime(`${plan.program}.new`, atime!, mtime!);
  await Deno.rename(`${plan.program}.new`, plan.program);
  assertEquals(await keyOf({}), keys.at(-1));
  await Deno.utime(plan.program, atime!, new Date(mtime!.getTime() + 1000));
  assert(await keyOf({}) !== keys.at(-1));
});

test("findSnapshotSlot() returns no slot for a VM whose inputs cannot be compared", async (place) => {
  const { plan } = place;
  const refused: Partial<QemuPlan>[] = [
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

test("findSnapshotSlot() finds a saved snapshot, unless restore is false", async (place) => {
  assertEquals((await look(place)).slot?.foundSnapshot, undefined);
  const saved = await fill(place);
  const { slot, said } = await look(place);
  assertEquals([slot?.foundSnapshot?.path, said], [saved.path, []]);
  const options = { ...place.options, restore: false };
  const fresh = await look({ ...place, options });
  assertEquals([fresh.slot?.foundSnapshot, fresh.said], [undefined, []]);
  assertEquals(fresh.slot?.key, slot?.key);
});

test("findSnapshotSlot() removes a damaged snapshot with one warning", async (place) => {
  const { path } = await fill(place);
  await Deno.truncate(path, 3);
  const { slot, said } = await look(place);
  assertEquals(slot?.foundSnapshot, undefined);
  assertEquals(said, [
    "The snapshot was removed: its file has changed; booting instead",
  ]);
  assertEquals((await look(place)).said, []);
});

test("snapshot slot: removeAndWarn() keeps a snapshot that another process has saved meanwhile", async (place) => {
  await fill(place);
  const { slot } = await look(place);
  assertEquals(await slot!.isUnchanged(), true);
  await new Promise((done) => setTimeout(done, 20));
  const { path } = await fill(place);
  assertEquals(await slot!.isUnchanged(), false);
  await slot!.removeAndWarn("it was replaced");
  assertEquals(slot!.foundSnapshot, undefined);
  assertEquals((await look(place)).slot?.foundSnapshot?.path, path);
});

test("findSnapshotSlot() ignores a damaged snapshot while another process saves", async (place) => {
  const { path, key } = await fill(place);
  await Deno.truncate(path, 3);
  await using _staging = await snapshotStore(place.options.dir).createStaging(
    key,
  );
  const { slot, said } = await look(place);
  assertEquals(slot?.foundSnapshot, undefined);
  assertEquals(said, [
    "The snapshot is not used: its file has changed; booting instead",
  ]);
  await Deno.stat(path);
});

test("findSnapshotSlot() returns no slot when QEMU arguments name host files", async (place) => {
  const { plan } = place;
  const slot = async (...extra: string[]) =>
    (await look({ ...place, plan: { ...plan, extra } })).slot;
  assert(await slot("-device", "virtio-keyboard-pci"));
  assertEquals(await slot("second.img"), undefined);
  assertEquals(await slot("-cpu", "max", "second.img"), undefined);
  const rom = ["-device", "virtio-net-pci,romfile=my.rom"];
  assertEquals(await slot(...rom), undefined);
});

test("findSnapshotSlot() ignores a snapshot saved by another QEMU version", async (place) => {
  const { key } = await fill(place);
  await Deno.writeTextFile(place.plan.program, "its next version");
  const { slot } = await look(place);
  assertEquals(slot?.foundSnapshot, undefined);
  assert(slot?.key !== key);
});

test("snapshot slot: saves only with enough disk space and emits state_saved once", async (place) => {
  const { plan, options } = place;
  const { events, onEvent } = collectEvents("state_saved");
  const warned = collectEvents("warning");
  const emit = createEmitter((event) => {
    onEvent(event);
    warned.onEvent(event);
  });
  const find = async (more: Partial<Place>) =>
    (await findSnapshotSlot(more.plan ?? plan, {
      snapshots: { ...options, ...more.options },
    }, emit))!;
  const huge = { ...plan, memory: 2 ** 40 };
  assertEquals(
    await (await find({ plan: huge })).tryCreateStaging(),
    undefined,
  );
  const [{ message }] = warned.events.splice(0);
  assertEquals(
    message,
    `The VM was not saved: not enough disk space in ${options.dir} for ${
      2 ** 40
    } MiB of guest memory`,
  );
  const unwanted = { ...options, save: false };
  assertEquals(
    await (await find({ options: unwanted })).tryCreateStaging(),
    undefined,
  );
  const slot = await find({});
  await slot.waitForCommit();
  assertEquals(events, []);
  const staging = (await slot.tryCreateStaging())!;
  // As if another process were saving.
  assertEquals(await (await find({})).tryCreateStaging(), undefined);
  await Deno.writeTextFile(staging.state, "devices", { mode: 0o600 });
  await Deno.writeTextFile(staging.memory, "memory", { mode: 0o600 });
  await Deno.writeTextFile(staging.disk, "disk", { mode: 0o600 });
  slot.commitInBackground(staging, 12.6);
  await slot.waitForCommit();
  await slot.waitForCommit();
  assertEquals(events.map(({ stoodMs }) => stoodMs), [13]);
  assert(events[0].bytes > 0 && events[0].path.endsWith(".state"));
  assertEquals(await Deno.stat(staging.dir).catch(() => "gone"), "gone");
  assertEquals(warned.events, []);
  assertEquals((await find({})).foundSnapshot?.key, slot.key);
});

test("snapshot slot: warns instead of throwing when a VM cannot be saved", async (place) => {
  const { plan, options } = place;
  const { events, onEvent } = collectEvents("warning");
  const emit = createEmitter(onEvent);
  const slot = (await findSnapshotSlot(plan, { snapshots: options }, emit))!;
  const staging = (await slot.tryCreateStaging())!;
  // The staging directory is empty, so the commit fails.
  slot.commitInBackground(staging, 1);
  await slot.waitForCommit();
  slot.warnNotSaved(new Error("QEMU has refused"));
  await Deno.remove(options.dir, { recursive: true });
  await Deno.writeTextFile(options.dir, "a file in its place");
  assertEquals(await slot.tryCreateStaging(), undefined);
  const said = events.map(({ message }) => message);
  assert(said.every((it) => it.startsWith("The VM was not saved: ")));
  assertEquals([said.length, said[1]], [
    ...[3, "The VM was not saved: QEMU has refused"],
  ]);
  const none = { snapshots: undefined };
  assertEquals(await findSnapshotSlot(plan, none, emit), undefined);
});

test("findSnapshotSlot() updates the last-used time of the snapshot", async (place) => {
  const { path } = await fill(place);
  const json = path.replace(/\.state$/, ".json");
  await Deno.utime(json, 1e9, 1e9);
  await look(place);
  assert((await Deno.stat(json)).mtime!.getTime() > 1e12);
});
