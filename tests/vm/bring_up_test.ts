/**
 * The order in which a machine is brought up, and what becomes of it where that
 * fails: QEMU and the guest are fakes, as real ones fail in few of these ways
 * when asked to.
 */
import { assert, assertEquals } from "@std/assert";
import type { GuestShare } from "../../lib/qemu/args.ts";
import { RefusedError, VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { bringUp } from "../../lib/vm/_bring_up.ts";
import { NotMappable } from "../../lib/vm/_course.ts";
import type { BootedVm } from "../../lib/vm/vm.ts";
import { failure } from "../support/failure.ts";
import type { Request } from "../support/fake_machine.ts";
import {
  drive,
  fakeSlot,
  fakeStaging,
  type FakeStart,
  fakeStart,
  type FakeStartOptions,
  IMAGE,
  ready,
  TEMPORARY,
} from "../support/fake_start.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };
const SIZE = {
  ...{ version: "7.2.22", accelerator: "tcg", memory: 512, cpus: 2 },
};
const WORK: GuestShare = { path: "/work", tag: "work", writable: false };
const OUT: GuestShare = { path: "/out", tag: "out", writable: true };

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ...socketsHere, fn });
}

/** Brings a machine up, and looks at it before it ends. */
async function up(
  options: FakeStartOptions,
  look: (vm: BootedVm, fake: FakeStart) => unknown = () => {},
) {
  await using fake = await fakeStart(options);
  const vm = await bringUp(fake.start);
  assert("facts" in vm, "it was saved and ended");
  try {
    await look(vm, fake);
  } finally {
    fake.end();
    await vm.stop();
  }
  return fake;
}

const warnings = ({ events }: FakeStart) =>
  events.filter(({ type }) => type === "warning").map(({ message }) => message);

/** The phases of a start that are measured, and those that take no time. */
function readyOf({ events }: FakeStart) {
  const { phases, elapsedMs, ...rest } = events.find(({ type }) =>
    type === "boot_ready"
  )!;
  const parts = phases as Record<string, number>;
  const sum = Object.values(parts).reduce((sum, ms) => sum + ms);
  assertEquals(elapsedMs, sum);
  return rest;
}

test("a machine that boots is compared with its image, runs, and says when it is ready", async () => {
  const { done, events } = await up({
    start: () => ({ options: { image: IMAGE } }),
  }, (vm, fake) => {
    assertEquals<unknown>(vm.facts, {
      ...{ image: IMAGE, pid: 4242, dir: fake.guest.dir, ...SIZE },
      ...{ shares: [], network: false },
    });
    assertEquals(fake.done, ["query-block", "cont"]);
    assertEquals(fake.events, [
      { type: "vm_boot", image: IMAGE, how: "boot", backend: "qemu", ...SIZE },
      fake.events[1],
    ]);
    assertEquals<unknown>(readyOf(fake), {
      ...{ type: "boot_ready", image: IMAGE, how: "booted" },
      agent: "qemu-ga 7.2.22",
    });
  });
  assertEquals(done.slice(-4), [
    "qmp closed",
    "typing stopped",
    "machine ended",
    "typing left",
  ]);
  assertEquals(events.at(-1)?.type, "shutdown");
});

test("a machine with another disk than was looked at never runs", async () => {
  for (const files of [["/images/b.qcow2"], [IMAGE, "/etc/shadow"], []]) {
    await using fake = await fakeStart({
      qemu: ([name]) =>
        name === "query-block" ? [drive(TEMPORARY, ...files)] : undefined,
    });
    const error = await failure("image_unsafe", () => bringUp(fake.start));
    assert(error.hint?.endsWith(`: ${IMAGE}`), error.hint);
    assertEquals(fake.done, ["query-block"]);
  }
});

test("the disk that is kept lies above the image", async () => {
  const overlay = "/disks/kept.qcow2";
  await up({
    qemu: ([name]) =>
      name === "query-block" ? [drive(overlay, IMAGE)] : undefined,
    start: ({ start }) => ({
      plan: { ...start.plan, disk: overlay, ephemeral: false },
    }),
  });
});

test("a restored machine runs once its snapshot is read, with its own disk and the host's time", async () => {
  let looks = 0;
  const scripts: string[][] = [];
  const agent = (request: Request) => {
    const { execute, arguments: args } = request;
    if (execute === "guest-exec") scripts.push(args.arg as string[]);
    if (execute === "guest-info") throw new Error("it has told before");
    return ready(request);
  };
  const { done, events } = await up({
    agent,
    qemu([name]) {
      if (name === "query-block") {
        return [drive(TEMPORARY, "/m/key.qcow2", IMAGE)];
      }
      if (name !== "query-status") return;
      return { status: ++looks < 3 ? "inmigrate" : "paused" };
    },
    start: ({ done }) => ({
      slot: fakeSlot(done),
      files: { path: "/m/key.state", disk: "/m/key.qcow2" },
    }),
  }, (_, fake) => {
    assertEquals<unknown>(readyOf(fake), {
      ...{ type: "boot_ready", image: IMAGE, how: "restored" },
      agent: undefined,
    });
  });
  assertEquals(events[0].how, "restore");
  assertEquals(done.slice(0, 5), [
    ...["query-status", "query-status", "query-status", "query-block", "cont"],
  ]);
  assertEquals(scripts.length, 1);
  const [, , , seconds, whole] = scripts[0];
  assert(Math.abs(Number(seconds) - Date.now() / 1000) < 300, seconds);
  assertEquals(whole, `${Math.round(Number(seconds))}`);
});

test("a snapshot that was replaced meanwhile is not restored", async () => {
  await using fake = await fakeStart({
    start: ({ done }) => ({
      slot: fakeSlot(done, { unchanged: () => Promise.resolve(false) }),
      files: { path: "/m/key.state" },
    }),
  });
  const error = await failure("boot_failed", () => bringUp(fake.start));
  assertEquals(error.message, "it was replaced by another");
  assertEquals(fake.done, ["query-status", "query-block"]);
});

test("a machine that is saved comes to rest, stands still for it, and runs on", async () => {
  const { done, events } = await up({
    start: (fake) => ({
      slot: fakeSlot(fake.done),
      staging: fakeStaging(fake),
      plan: { ...fake.start.plan, shares: [WORK, OUT] },
    }),
  }, (_, fake) => {
    assertEquals(fake.done, [
      ...["query-block", "cont", "typing left", "stop", "query-blockstats"],
      ...["migrate-set-parameters", "migrate", "query-migrate", "cont"],
      ...["placed: true", "device_add"],
    ]);
  });
  assertEquals(events.map(({ type }) => type), [
    ...["vm_boot", "boot_ready", "shutdown"],
  ]);
  assert(done.indexOf("machine ended") < done.indexOf("slot settled"));
});

test("a machine whose memory is mapped ends when it is saved, and says so", async () => {
  const scripts: string[][] = [];
  await using fake = await fakeStart({
    agent(request) {
      const { execute, arguments: args } = request;
      if (execute === "guest-exec") scripts.push(args.arg as string[]);
      return ready(request);
    },
    start: (fake) => ({
      slot: fakeSlot(fake.done, { mapped: true }),
      staging: fakeStaging(fake),
      plan: { ...fake.start.plan, shares: [WORK, OUT] },
    }),
  });
  const saved = await bringUp(fake.start);
  assert(!("facts" in saved));
  assertEquals(saved.agent, "qemu-ga 7.2.22");
  assert(saved.stopped <= performance.now());
  assertEquals(fake.done.slice(-3), [
    ...["query-migrate", "qmp closed", "machine ended"],
  ]);
  assertEquals(fake.events.length, 1);
  // Cloud-init's end, then rest; an export's device is not there yet.
  assertEquals(scripts.length, 2);
  assertEquals(scripts[1].slice(2), ["sh", "30", "work", "/mnt/work"]);
});

test("the machine that goes on in the place of one that was saved reports its boot", async () => {
  const stopped = performance.now() - 50;
  const { done } = await up({
    start: (fake) => ({
      slot: fakeSlot(fake.done, {
        mapped: true,
        // It is not in its place yet.
        unchanged: () => Promise.resolve(false),
        place: (_, ms) => void fake.done.push(`placed: ${ms >= 50}`),
      }),
      staging: fakeStaging(fake),
      files: { path: "/m/state" },
      saved: { stopped, agent: "toolsmith" },
    }),
  }, (_, fake) => {
    assertEquals<unknown>(readyOf(fake), {
      ...{ type: "boot_ready", image: IMAGE, how: "booted" },
      agent: "toolsmith",
    });
    assertEquals(fake.events.length, 1);
  });
  assertEquals(done.slice(0, 4), [
    ...["query-status", "query-block", "cont", "placed: true"],
  ]);
});

test("where that one does not run, memory is not mapped again", async () => {
  await using fake = await fakeStart({
    qemu: ([name]) =>
      name === "cont"
        ? new RefusedError("no cont; its console shows nothing")
        : undefined,
    start: (fake) => ({
      slot: fakeSlot(fake.done, { mapped: true }),
      files: { path: "/m/state" },
      saved: { stopped: 0, agent: undefined },
    }),
  });
  const error = await bringUp(fake.start).catch((error) => error);
  assert(error instanceof NotMappable);
  assertEquals(error.message, "no cont");
});

test("a machine that cannot be saved, or was typed into, runs on without a snapshot", async () => {
  const refused = await up({
    qemu: ([name]) =>
      name === "migrate" ? new RefusedError("no migration") : undefined,
    start: (fake) => ({
      slot: fakeSlot(fake.done, { mapped: true }),
      staging: fakeStaging(fake),
    }),
  });
  assertEquals(refused.done.slice(5, 9), [
    ...["migrate-set-parameters", "migrate", "cont", "staging removed"],
  ]);
  assertEquals(refused.done[9], "failed: no migration");
  const typed = await up({
    start: (fake) => ({
      slot: fakeSlot(fake.done),
      staging: fakeStaging(fake),
      typing: { ...fake.start.typing, used: () => true },
    }),
  });
  assertEquals(typed.done.slice(0, 4), [
    ...["query-block", "cont", "typing left", "staging removed"],
  ]);
  assert(!typed.done.includes("stop"));
});

const silent = { agent: () => undefined, reads: false };
const NO_AGENT =
  "The guest has no agent that answers: there is only its console";

test("a guest without an agent is of use where none is asked for", async () => {
  const options = { image: IMAGE, bootTimeoutMs: 150 };
  await using fake = await fakeStart({ ...silent, start: () => ({ options }) });
  await failure("guest_not_ready", () => bringUp(fake.start));
  const optional = { ...options, agentOptional: true };
  const booted = await up({
    ...silent,
    start: (fake) => ({
      options: optional,
      slot: fakeSlot(fake.done),
      staging: fakeStaging(fake),
      plan: { ...fake.start.plan, shares: [WORK] },
    }),
  }, (vm) => assertEquals(vm.facts.shares, []));
  assertEquals(warnings(booted), [NO_AGENT]);
  assertEquals(booted.events.map(({ type }) => type), [
    ...["vm_boot", "warning", "shutdown"],
  ]);
  // It would be another guest for each that expects an agent.
  assertEquals(booted.done.slice(2, 4), ["typing left", "staging removed"]);
  await using restored = await fakeStart({
    ...silent,
    start: (fake) => ({
      options: optional,
      slot: fakeSlot(fake.done),
      files: { path: "/m/key.state" },
    }),
  });
  await failure("guest_not_ready", () => bringUp(restored.start));
});

test("cloud-init that does not end is a warning where no agent is needed, either", async () => {
  const agent = (request: Request) =>
    request.execute === "guest-exec-status"
      ? { exited: false }
      : ready(request);
  const options = { image: IMAGE, bootTimeoutMs: 300 };
  await using fake = await fakeStart({ agent, start: () => ({ options }) });
  await failure("guest_not_ready", () => bringUp(fake.start));
  const booted = await up({
    agent,
    start: () => ({ options: { ...options, agentOptional: true } }),
  }, (_, fake) => assertEquals(readyOf(fake).agent, undefined));
  assertEquals(warnings(booted), [
    "The guest's cloud-init did not end in time",
  ]);
});

test("directories are mounted, a network card comes, and both are said of the machine", async () => {
  const agent = (request: Request) =>
    request.execute === "guest-network-get-interfaces"
      ? [{ name: "eth0", "ip-addresses": [{ "ip-address-type": "ipv4" }] }]
      : ready(request);
  const { done } = await up({
    agent,
    start: ({ start }) => ({
      options: { image: IMAGE, network: true },
      plan: { ...start.plan, shares: [WORK, OUT] },
    }),
  }, (vm) => {
    assertEquals(vm.facts.shares, [WORK, OUT]);
    assertEquals(vm.facts.network, true);
  });
  assertEquals(done.slice(2, 5), ["device_add", "netdev_add", "device_add"]);
});

test("a released machine lives on, once what was saved is in its place", async () => {
  await using fake = await fakeStart({
    start: (fake) => ({ slot: fakeSlot(fake.done) }),
  });
  const vm = await bringUp(fake.start) as BootedVm;
  await vm.release();
  assertEquals(fake.done.slice(2), [
    ...["qmp closed", "typing stopped", "slot settled", "machine released"],
  ]);
});

test("a stop leaves no directory, and a disk that is kept is given time", async () => {
  await using kept: FakeStart = await fakeStart({
    start: ({ start }) => ({ plan: { ...start.plan, ephemeral: false } }),
    qemu([name]) {
      if (name === "system_powerdown") kept.end();
      return name === "query-block" ? [drive(IMAGE)] : undefined;
    },
  });
  const vm = await bringUp(kept.start) as BootedVm;
  await vm[Symbol.asyncDispose]();
  assertEquals(kept.events.at(-1)?.how, "powered_down");
  const gone = await Deno.stat(kept.guest.dir).catch(() => "gone");
  assertEquals(gone, "gone");
});

test("a disk that is not kept needs no time to be written", async () => {
  await using fake: FakeStart = await fakeStart({
    qemu([name]) {
      if (name === "quit") fake.end();
      return undefined;
    },
  });
  await (await bringUp(fake.start) as BootedVm).stop();
  assertEquals(fake.events.at(-1)?.how, "stopped");
  assert(!fake.done.includes("system_powerdown"));
});

test("an accelerator that breaks while the guest runs is no reason to try another", async () => {
  await up({
    machine: {
      accelerator: "kvm",
      ended: Promise.resolve({ code: 134, signal: null }),
      stderrTail: () => "KVM: entry failed",
    },
    qemu: ([name]) =>
      name === "chardev-add" ? new VmDisconnectedError() : undefined,
  }, async (vm) => {
    const error = await failure("guest_failed", () => vm.exec("true"));
    assertEquals(error.message, "QEMU has ended: KVM: entry failed");
  });
});
