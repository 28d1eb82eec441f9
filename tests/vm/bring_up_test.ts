/**
 * The order in which a machine is brought up, and what becomes of it where that
 * fails: QEMU and the guest are fakes, as real ones fail in few of these ways
 * when asked to.
 */
import { assert, assertEquals } from "@std/assert";
import type { GuestShare } from "../../lib/qemu/args.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { bringUp } from "../../lib/vm/_bring_up.ts";
import type { BootedVm } from "../../lib/vm/vm.ts";
import { failure } from "../support/failure.ts";
import type { Request } from "../support/fake_machine.ts";
import { hurriedTimers } from "../support/timers.ts";
import {
  bringUpFake,
  drive,
  fakeSlot,
  fakeStaging,
  type FakeStart,
  fakeStart,
  IMAGE,
  ready,
  readyEvent,
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

const warnings = ({ events }: FakeStart) =>
  events.filter(({ type }) => type === "warning").map(({ message }) => message);

test("a machine that boots is compared with its image, runs, and says when it is ready", async () => {
  const { done, events } = await bringUpFake({
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
    assertEquals<unknown>(readyEvent(fake), {
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
  await bringUpFake({
    qemu: ([name]) =>
      name === "query-block" ? [drive(overlay, IMAGE)] : undefined,
    start: ({ start }) => ({
      plan: { ...start.plan, disk: overlay, ephemeral: false },
    }),
  });
});

const silent = { agent: () => undefined, reads: false };
const NO_AGENT =
  "The guest has no agent that answers: there is only its console";

test("a guest without an agent is of use where none is asked for", async () => {
  const options = { image: IMAGE, bootTimeoutMs: 150 };
  await using fake = await fakeStart({ ...silent, start: () => ({ options }) });
  await failure("guest_not_ready", () => bringUp(fake.start));
  const optional = { ...options, agentOptional: true };
  const booted = await bringUpFake({
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
  const done = booted.done.filter((it) => it !== "query-blockstats");
  assertEquals(done[2], "staging removed");
  await using restored = await fakeStart({
    ...silent,
    start: (fake) => ({
      options: optional,
      slot: fakeSlot(fake.done),
      files: { path: "/m/key.state", disk: "/m/key.qcow2" },
    }),
  });
  await failure("guest_not_ready", () => bringUp(restored.start));
});

test("cloud-init that does not end is a warning where no agent is needed, either", async () => {
  const now = performance.now.bind(performance);
  let passed = 0;
  using _timers = hurriedTimers((ms) => ms === 5000 ? 20 : ms);
  const agent = (request: Request) => {
    if (request.execute !== "guest-exec-status") return ready(request);
    // Minutes pass while it is looked at.
    passed += 600_000;
    return { exited: false };
  };
  performance.now = () => now() + passed;
  try {
    await using fake = await fakeStart({ agent });
    await failure("guest_not_ready", () => bringUp(fake.start));
    const booted = await bringUpFake({
      agent,
      start: () => ({ options: { image: IMAGE, agentOptional: true } }),
    }, (_, fake) => assertEquals(readyEvent(fake).agent, undefined));
    assertEquals(warnings(booted), [
      "The guest's cloud-init did not end within 120 s; the guest read 0.0 MiB of its disk",
    ]);
  } finally {
    performance.now = now;
  }
});

test("directories are mounted, a network card comes, and both are said of the machine", async () => {
  const agent = (request: Request) =>
    request.execute === "guest-network-get-interfaces"
      ? [{ name: "eth0", "ip-addresses": [{ "ip-address-type": "ipv4" }] }]
      : ready(request);
  const { done } = await bringUpFake({
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
    start: ({ start }) => ({
      options: { image: IMAGE, overlay: IMAGE },
      qemu: { ...start.qemu, ephemeral: false },
    }),
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
  await bringUpFake({
    prepared: false,
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
