/**
 * Saving and restoring a VM with a fake guest, as a real one rarely fails in these ways.
 * tests/boots/snapshots_test.ts uses a real one.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import type { GuestShare } from "../../lib/qemu/args.ts";
import { CommandRefusedError } from "../../lib/qemu/errors.ts";
import { bootGuest, finishBoot } from "../../lib/vm/_start_vm.ts";
import { runProcess } from "../../lib/system/process.ts";
import {
  CannotSaveVmError,
  restoreGuest,
  resumeSavedGuest,
  saveGuest,
} from "../../lib/vm/_snapshot_qemu.ts";
import type { BootedVm } from "../../lib/vm/vm.ts";
import { namesIn } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { type FakeRequest, refusal } from "../support/fake_machine.ts";
import {
  answerScriptsWithSuccess,
  type FakeVm,
  fakeVm,
  type FakeVmOptions,
  readyEvent,
  stopFake,
} from "../support/fake_vm.ts";
import { holdTimers } from "../support/timers.ts";
import { foundTools, requires } from "../support/parts.ts";
import { assertAllEnded } from "../support/processes.ts";

const WORK: GuestShare = { path: "/work", tag: "work", writable: false };
const OUT: GuestShare = { path: "/out", tag: "out", writable: true };

function test(
  name: string,
  fn: () => Promise<void>,
  how = { ignore: Deno.build.os === "windows" },
) {
  Deno.test({ name, ...how, fn });
}

/** Commits a snapshot to the slot of a VM and finds it. */
async function place(fake: FakeVm) {
  await using staging = await fake.stage();
  await staging.commit();
  await fake.vm.attempt.slot!.findSnapshot();
}

/** Restores a VM from the snapshot in its slot. */
async function restore({ vm }: FakeVm): Promise<BootedVm> {
  vm.emitVmBoot();
  await restoreGuest(vm);
  return await finishBoot(vm);
}

/** A VM that is restored. */
async function restored(options: FakeVmOptions = {}) {
  const fake = await fakeVm({ ...options, how: "restore" });
  await place(fake);
  return { fake, vm: await restore(fake) };
}

test("restoreGuest() sets the guest's clock without asking the guest agent", async () => {
  let told: string[] = [];
  const earliest = Date.now() / 1000;
  const { fake, vm } = await restored({
    agent({ execute }) {
      throw new Error(`it was asked for ${execute}`);
    },
    waiting: {
      setUp(marker, words) {
        told = words;
        return `${marker}0 7\n`;
      },
    },
  });
  await using _fake = fake;
  assertEquals(fake.events[0].how, "restore");
  assertEquals<unknown>(readyEvent(fake), {
    ...{ type: "boot_ready", image: fake.image, how: "restored" },
    agent: undefined,
  });
  const [seconds, whole, card, ...more] = told;
  const rounded = `${Math.round(Number(seconds))}`;
  assertEquals([whole, card, more], [rounded, "", []]);
  assert(Number(seconds) >= earliest - 1, seconds);
  assert(Number(seconds) <= Date.now() / 1000 + 1, seconds);
  // The guest runs only after the snapshot is loaded and the disk files are checked.
  const order = ["loaded", "query-block", "cont"];
  assertEquals(fake.actions.filter((it) => order.includes(it)), order);
  await stopFake(fake, vm);
});

test("restoreGuest() waits two minutes for the setup, however long the boot may take", async () => {
  using timers = holdTimers(120_000);
  let held = -1;
  const { fake, vm } = await restored({
    options: { bootTimeoutMs: 3_600_000 },
    waiting: {
      setUp(marker) {
        held = timers.count();
        return `${marker}0 7\n`;
      },
    },
  });
  await using _fake = fake;
  assertEquals(held, 1);
  await stopFake(fake, vm);
});

test("restoreGuest() rejects a snapshot that was replaced while it loaded", async () => {
  await using fake: FakeVm = await fakeVm({
    how: "restore",
    machine: {
      async loadSnapshot() {
        await Deno.remove(join(fake.dir, "machines"), { recursive: true });
      },
    },
  });
  await place(fake);
  const error = await expectFailure("boot_failed", () => restore(fake));
  assertEquals(error.message, "another process replaced the snapshot");
  assert(!fake.actions.includes("cont"));
});

test("restoreGuest(): the warm shell runs the first command", async () => {
  const { fake, vm } = await restored({ plan: { shares: [WORK] } });
  await using _fake = fake;
  assertEquals(vm.facts.shares, [WORK]);
  const { code, stdout } = await vm.exec("echo", { args: ["ä\n"] });
  assertEquals([code, stdout], [
    3,
    "no /mnt/work /mnt/work 3 GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=* echo \\0303\\0244\\0012",
  ]);
  await stopFake(fake, vm);
  // Its ports are unplugged afterwards.
  assertEquals(fake.actions.filter((it) => it === "device_del").length, 3);
});

test("restored VM: leaveRunning() unplugs the warm shell", async () => {
  const { fake, vm } = await restored();
  await using _fake = fake;
  await vm.leaveRunning();
  assertEquals(fake.actions.filter((it) => it === "device_del").length, 3);
});

test("restoreGuest() rejects a guest whose agent is silent, even with agentOptional", async () => {
  await using fake = await fakeVm({
    ...{ how: "restore", agent: () => undefined, reads: false },
    options: { agentOptional: true, bootTimeoutMs: 150 },
  });
  await place(fake);
  await expectFailure("guest_not_ready", () => restore(fake));
});

/** A booted fake VM whose successor is a real QEMU. */
async function booted(options: FakeVmOptions = {}) {
  const fake = await fakeVm({
    ...options,
    plan: { program: foundTools.qemu ?? "none", ...options.plan },
  });
  const create = ["create", "-q", "-f", "qcow2", fake.image, "8M"];
  assertEquals((await runProcess("qemu-img", { args: create })).code, 0);
  const { plan } = fake.vm.attempt;
  plan.env = new Map([["TMPDIR", fake.dir]]);
  const staging = fake.vm.attempt.staging = await fake.stage();
  await bootGuest(fake.vm);
  return { fake, staging };
}

const withQemu = requires("qemu", "qemuImg");

test(
  "saveGuest() pauses the booted VM and returns a second QEMU that waits to restore",
  async () => {
    const scripts: string[][] = [];
    const { fake, staging } = await booted({
      agent(request) {
        const { execute, arguments: args } = request;
        if (execute === "guest-exec") scripts.push(args.arg as string[]);
        return answerScriptsWithSuccess(request);
      },
      plan: { shares: [WORK, OUT] },
    });
    await using _fake = fake;
    const successor = (await saveGuest(fake.vm))!;
    const [answer] = await successor.qmp.execute(["query-status"]);
    assertEquals((answer as { status: string }).status, "inmigrate");
    await successor[Symbol.asyncDispose]();
    assert(!fake.actions.slice(fake.actions.indexOf("stop")).includes("cont"));
    // Only the workspace is mounted, and a warm shell waits for a command.
    assertEquals(scripts[1].slice(2), ["sh", "30", "work", "/mnt/work"]);
    assertEquals(scripts[2].slice(2, 5), ["sh", "toolsmith.prepared", "yes"]);
    // The warm shell's ports close with the VM.
    await fake.vm.endQemu();
    const port = await fake.guest.first("err");
    await port.read(new Uint8Array(1)).catch(() => {});
    await assertRejects(() => Deno.lstat(fake.guest.dir), Deno.errors.NotFound);
    await staging[Symbol.asyncDispose]();
  },
  withQemu,
);

test("resumeSavedGuest() resumes the saved VM and commits its snapshot", async () => {
  await using fake = await fakeVm({ how: "restore" });
  const { attempt } = fake.vm;
  attempt.staging = await fake.stage();
  attempt.pausedAtMs = performance.now() - 50;
  attempt.agentName = "toolsmith";
  await resumeSavedGuest(fake.vm);
  const vm = await finishBoot(fake.vm);
  assertEquals<unknown>(readyEvent(fake), {
    ...{ type: "boot_ready", image: fake.image, how: "booted" },
    agent: "toolsmith",
  });
  await stopFake(fake, vm);
  const [found] = await snapshotStore(join(fake.dir, "machines")).list();
  const event = fake.events.find(({ type }) => type === "state_saved")!;
  assertEquals([event.path, event.bytes], [found.path, found.bytes]);
  assert(event.stoodMs as number >= 50);
});

test("resumeSavedGuest() throws CannotSaveVmError when the saved VM does not run", async () => {
  await using fake = await fakeVm({
    how: "restore",
    qemu: ([name]) =>
      name === "cont"
        ? new CommandRefusedError("no cont; its console is empty")
        : undefined,
  });
  await using staging = await fake.stage();
  fake.vm.attempt.staging = staging;
  const error = await resumeSavedGuest(fake.vm)
    .catch((error) => error);
  assert(error instanceof CannotSaveVmError);
  assertEquals(error.message, "no cont");
});

test("resumeSavedGuest() commits no snapshot whose agent is silent", async () => {
  await using fake = await fakeVm({
    ...{ how: "restore", agent: () => undefined, reads: false },
    options: { bootTimeoutMs: 150 },
  });
  await using staging = await fake.stage();
  fake.vm.attempt.staging = staging;
  const error = await resumeSavedGuest(fake.vm).catch((error) => error);
  assert(error instanceof CannotSaveVmError);
  const store = snapshotStore(join(fake.dir, "machines"));
  assertEquals(await store.list(), []);
});

/** Fails to save a guest, and finishes its boot. */
async function goesOn(options: FakeVmOptions) {
  const { fake } = await booted(options);
  await using _fake = fake;
  assertEquals(await saveGuest(fake.vm), undefined);
  const vm = await finishBoot(fake.vm);
  assertEquals(readyEvent(fake).how, "booted");
  const names = await namesIn(join(fake.dir, "machines"));
  assertEquals(names.filter((name) => !name.endsWith(".lock")), []);
  await assertAllEnded(fake.dir);
  await stopFake(fake, vm);
  return { done: fake.actions, said: fake.warnings() };
}

const NOT_SAVED = "The VM was not saved: ";

test(
  "saveGuest() warns and lets the guest run on when the save fails",
  async () => {
    const agent = (request: FakeRequest) =>
      request.execute === "guest-exec" &&
        (request.arguments.arg as string[]).includes("yes")
        ? refusal("no process")
        : answerScriptsWithSuccess(request);
    const shell = await goesOn({ agent });
    assertEquals(shell.said, [
      `${NOT_SAVED}The guest agent refused guest-exec: no process`,
    ]);
    assert(!shell.done.includes("stop"));
    const refused = await goesOn({
      qemu: ([name]) =>
        name === "migrate"
          ? new CommandRefusedError("no migration")
          : undefined,
    });
    assertEquals(refused.said, [`${NOT_SAVED}no migration`]);
    assertEquals(refused.done.filter((it) => it === "cont").length, 2);
    const alone = await goesOn({ plan: { program: "/nowhere/qemu" } });
    assertEquals(alone.said, [`${NOT_SAVED}QEMU not found: /nowhere/qemu`]);
  },
  withQemu,
);

test(
  "saveGuest() does not save a guest with console input or without an agent",
  async () => {
    const { readable, writable } = new TransformStream<Uint8Array>();
    const seen = Promise.withResolvers<void>();
    const typing = writable.getWriter().write(new Uint8Array(1));
    const typed = await goesOn({
      machine: { writeToConsole: () => Promise.resolve(seen.resolve()) },
      options: { console: { input: readable, output() {} } },
    });
    await Promise.all([seen.promise, typing]);
    assertEquals([typed.said, typed.done.includes("stop")], [[], false]);
    await using fake = await fakeVm();
    const staging = fake.vm.attempt.staging = await fake.stage();
    assertEquals(await saveGuest(fake.vm), undefined);
    assert(!fake.actions.includes("stop"));
    assertEquals(await Deno.stat(staging.dir).catch(() => "gone"), "gone");
  },
  withQemu,
);

test(
  "saveGuest() leaves no successor QEMU when aborted",
  async () => {
    const stop = new AbortController();
    const { fake, staging } = await booted({
      options: { signal: stop.signal },
      qemu([name]) {
        if (name !== "migrate") return;
        stop.abort(new Error("enough"));
        return new CommandRefusedError("no migration");
      },
    });
    await using _fake = fake;
    const error = await saveGuest(fake.vm)
      .catch((error) => error);
    assert(error instanceof Error);
    await assertAllEnded(fake.dir);
    assertEquals(fake.warnings(), []);
    await staging[Symbol.asyncDispose]();
  },
  withQemu,
);
