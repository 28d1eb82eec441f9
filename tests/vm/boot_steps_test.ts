/**
 * Booting a VM and its failures, with a fake QEMU and guest, as real ones rarely fail in
 * these ways.
 */
import { assert, assertEquals } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import type { GuestShare } from "../../lib/qemu/args.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { expectFailure } from "../support/expect_failure.ts";
import type { FakeRequest } from "../support/fake_machine.ts";
import {
  answerScriptsWithSuccess,
  bootFake,
  type FakeVm,
  fakeVm,
  qemuDrive,
  readyEvent,
  stopFake,
  TEMPORARY_OVERLAY,
} from "../support/fake_vm.ts";
import { changeTimerDelays, installMovingClock } from "../support/timers.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };
const SIZE = {
  ...{ version: "7.2.22", accelerator: "tcg", memory: 64, cpus: 2 },
};
const WORK: GuestShare = { path: "/work", tag: "work", writable: false };
const OUT: GuestShare = { path: "/out", tag: "out", writable: true };

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ...socketsHere, fn });
}

test("bootGuest() emits vm_boot and boot_ready, and stopping removes the VM's directory", async () => {
  await using fake = await fakeVm();
  const { image, guest } = fake;
  const vm = await bootFake(fake);
  assertEquals<unknown>(vm.facts, {
    ...{ image, pid: 4242, dir: guest.dir, ...SIZE },
    ...{ shares: [], network: false },
  });
  const [boot, ...more] = fake.events;
  assertEquals<unknown>(boot, {
    ...{ type: "vm_boot", image, how: "boot", backend: "qemu", ...SIZE },
  });
  assertEquals(more.length, 1);
  assertEquals<unknown>(readyEvent(fake), {
    ...{ type: "boot_ready", image, how: "booted", agent: "qemu-ga 7.2.22" },
  });
  await stopFake(fake, vm);
  assertEquals(fake.events.at(-1)?.type, "shutdown");
  assert(fake.actions.includes("machine ended"));
  assertEquals(await Deno.stat(guest.dir).catch(() => "gone"), "gone");
});

test("bootGuest() throws before the guest runs when QEMU opened other disk files", async () => {
  const others = (image: string) => [
    ["/images/b.qcow2"],
    [image, "/etc/shadow"],
    [],
  ];
  for (const which of [0, 1, 2]) {
    await using fake = await fakeVm({
      qemu: ([name], { image }) =>
        name === "query-block"
          ? [qemuDrive(TEMPORARY_OVERLAY, ...others(image)[which])]
          : undefined,
    });
    const error = await expectFailure("image_unsafe", () => bootFake(fake));
    assert(error.hint?.endsWith(`: ${fake.image}`), error.hint);
    assert(!fake.actions.includes("cont"));
  }
});

test("bootGuest() accepts an overlay based on the image", async () => {
  const overlay = "/disks/kept.qcow2";
  await using fake = await fakeVm({
    qemu: ([name], { image }) =>
      name === "query-block" ? [qemuDrive(overlay, image)] : undefined,
    plan: { disk: overlay, ephemeral: false },
  });
  await stopFake(fake, await bootFake(fake));
});

const silent = { agent: () => undefined, reads: false };

test("bootGuest() returns a console-only VM when the agent is optional and silent", async () => {
  const options = { bootTimeoutMs: 150 };
  await using late = await fakeVm({ ...silent, options });
  await expectFailure("guest_not_ready", () => bootFake(late));
  await using fake = await fakeVm({
    ...silent,
    options: { ...options, agentOptional: true },
    plan: { shares: [WORK] },
  });
  const vm = await bootFake(fake);
  assertEquals(vm.facts.shares, []);
  await expectFailure("guest_not_ready", () => vm.exec("true"));
  await stopFake(fake, vm);
  assertEquals(fake.warnings(), [
    "The guest agent does not answer: only the console is available",
  ]);
  assertEquals(fake.events.some(({ type }) => type === "boot_ready"), false);
});

test("bootGuest() warns about an unfinished cloud-init when the agent is optional", async () => {
  using clock = installMovingClock();
  using _timers = changeTimerDelays((ms) => ms === 5000 ? 20 : ms);
  const agent = (request: FakeRequest) => {
    if (request.execute !== "guest-exec-status") {
      return answerScriptsWithSuccess(request);
    }
    // Each poll takes minutes.
    clock.pass(600_000);
    return { exited: false };
  };
  {
    // Its agent must not pass time during the next boot.
    await using late = await fakeVm({ agent });
    await expectFailure("guest_not_ready", () => bootFake(late));
  }
  await using fake = await fakeVm({ agent, options: { agentOptional: true } });
  const vm = await bootFake(fake);
  assertEquals(readyEvent(fake).agent, undefined);
  await stopFake(fake, vm);
  assertEquals(fake.warnings(), [
    "The guest's cloud-init did not finish within 120 s; the guest read 0.0 MiB of its disk",
  ]);
});

test("bootGuest() reports a disk error while it waits for cloud-init", async () => {
  const full = new ToolsmithError("disk_full", "no space left");
  const stopped = Promise.withResolvers<ToolsmithError>();
  const agent = (request: FakeRequest) => {
    if (request.execute !== "guest-exec-status") {
      return answerScriptsWithSuccess(request);
    }
    stopped.resolve(full);
    return { exited: false };
  };
  const machine = { haltingDiskError: stopped.promise };
  await using fake = await fakeVm({ agent, machine });
  assertEquals(await bootFake(fake).catch((error) => error), full);
});

test("finishBoot() mounts directories, plugs a network card in and reports both", async () => {
  await using fake = await fakeVm({
    agent: answerScriptsWithSuccess,
    options: { network: "host-loopback" },
    plan: { shares: [WORK, OUT] },
  });
  const vm = await bootFake(fake);
  assertEquals([vm.facts.shares, vm.facts.network], [[WORK, OUT], true]);
  assert(fake.actions.includes("netdev_add"));
  await stopFake(fake, vm);
});

test("booted VM: leaveRunning() does not end QEMU", async () => {
  await using fake = await fakeVm();
  await (await bootFake(fake)).leaveRunning();
  assert(fake.actions.includes("machine released"));
  assert(!fake.actions.includes("machine ended"));
});

test("booted VM: stop() powers the guest down only with an overlay", async () => {
  await using kept: FakeVm = await fakeVm({
    options: { overlay: "/disks/kept.qcow2" },
    qemu([name]) {
      if (name === "system_powerdown") kept.end();
    },
  });
  await (await bootFake(kept))[Symbol.asyncDispose]();
  assertEquals(kept.events.at(-1)?.how, "powered_down");
  await using fake: FakeVm = await fakeVm({
    qemu([name]) {
      if (name === "quit") fake.end();
    },
  });
  await (await bootFake(fake)).stop();
  assertEquals(fake.events.at(-1)?.how, "stopped");
  assert(!fake.actions.includes("system_powerdown"));
});

test("booted VM: exec() reports guest_failed when the accelerator crashes", async () => {
  await using fake = await fakeVm({
    prepared: false,
    plan: { accelerator: "kvm" },
    machine: { stderrTail: () => "KVM: entry failed" },
    qemu: ([name]) =>
      name === "chardev-add" ? new VmDisconnectedError() : undefined,
  });
  const vm = await bootFake(fake);
  fake.end(134);
  const error = await expectFailure("guest_failed", () => vm.exec("true"));
  assertEquals(error.message, "QEMU exited: KVM: entry failed");
  await stopFake(fake, vm);
});
