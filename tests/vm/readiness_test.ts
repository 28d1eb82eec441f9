/**
 * Errors for guests that are not ready, with a fake QEMU, as a real one rarely ends in
 * these ways.
 */
import { assertEquals, assertMatch } from "@std/assert";
import { type ErrorCode, ToolsmithError } from "../../lib/errors.ts";
import type { Accelerator } from "../../lib/qemu/args.ts";
import { AcceleratorError } from "../../lib/qemu/errors.ts";
import type { QemuProcess } from "../../lib/qemu/qemu_process.ts";
import {
  bootFailureError,
  guestNotReadyError,
} from "../../lib/vm/_readiness.ts";
import { fakeVm, type FakeVmOptions } from "../support/fake_vm.ts";

/** The error for a QEMU that has ended like this. */
function failureOf(
  { code = 1, stderr = "", accelerator = "tcg", console = "" },
) {
  return bootFailureError({
    ended: Promise.resolve({ code, signal: null }),
    plan: { accelerator },
    stderrTail: () => stderr,
    consoleTail: () => console,
    consoleFailure: () => undefined,
  } as unknown as QemuProcess);
}

Deno.test("bootFailureError() reports QEMU's exit status, stderr and console tail", async () => {
  const words = await failureOf({ stderr: "qemu: no such bus" });
  assertMatch(words.message, /^QEMU exited with status 1: qemu: no such bus; /);
  const silent = await failureOf({ code: 3, console: "one\ntwo" });
  assertEquals(
    silent.message,
    "QEMU exited with status 3: no error output; its console ends with:\n  | one\n  | two",
  );
  const { message } = await failureOf({ code: 0, stderr: "a warning" });
  assertEquals(
    message,
    "The guest powered off or rebooted; its console is empty",
  );
});

Deno.test("bootFailureError() returns AcceleratorError after a crash, except with TCG", async () => {
  const crashed = { code: 134, stderr: "kvm: assertion failed" };
  const fast = await failureOf({ ...crashed, accelerator: "kvm" });
  assertEquals([fast instanceof AcceleratorError, fast.message], [
    true,
    crashed.stderr,
  ]);
  for (const other of [{}, { accelerator: "kvm", code: 1 }]) {
    const error = await failureOf({ ...crashed, ...other });
    assertEquals((error as ToolsmithError).code, "boot_failed");
  }
});

Deno.test("bootFailureError() reports a QEMU that ran out of memory", async () => {
  const stderr = "qemu: failed to allocate 1048576 bytes";
  for (const accelerator of ["tcg", "kvm"]) {
    const error = await failureOf({ code: 133, stderr, accelerator });
    assertEquals((error as ToolsmithError).code, "guest_failed");
    assertMatch(error.message, /exceed its memory limit/);
  }
});

Deno.test("bootFailureError() reports a console failure before QEMU's exit, with a hint", async () => {
  const failed = (code: ErrorCode, hint?: string) =>
    bootFailureError({
      consoleFailure: () => new ToolsmithError(code, "words", { hint }),
      // Still running: the error must not wait for its end.
      ended: new Promise(() => {}),
      consoleTail: () => "one",
      stderrTail: () => "a device failed",
    } as unknown as QemuProcess) as Promise<ToolsmithError>;
  const panicked = await failed("guest_panicked");
  assertEquals([panicked.code, panicked.message], [
    "guest_panicked",
    "words; its console ends with:\n  | one",
  ]);
  const { message } = panicked.cause as Error;
  assertEquals(message, "QEMU: a device failed");
  const empty = await failed("boot_failed", "pass --firmware");
  assertEquals([empty.code, empty.hint], ["boot_failed", "pass --firmware"]);
});

Deno.test("bootFailureError() blames the accelerator only for exit statuses from 128", async () => {
  for (const [code, blamed] of [[127, false], [128, true]] as const) {
    const error = await failureOf({ code, accelerator: "kvm", stderr: "x" });
    assertEquals(error instanceof AcceleratorError, blamed, `${code}`);
  }
});

/** Waits for a guest with a silent agent. */
async function waiting(
  machine: Partial<QemuProcess>,
  more: { signal?: AbortSignal } & FakeVmOptions = {},
) {
  const silent = { agent: () => undefined, reads: false };
  const { signal, ...rest } = more;
  const options = { ...silent, ...rest, options: { signal }, machine };
  await using fake = await fakeVm(options);
  const error = await fake.vm.watch.connectToAgent().catch((error) => error);
  return error as ToolsmithError;
}

const socketsHere = { ignore: Deno.build.os === "windows" };

Deno.test("guestNotReadyError() reports the missing step, the guest's activity and its console tail", () => {
  const late = {
    ...{ seconds: 0.15, activity: "the guest read 1.5 MiB of its disk" },
  };
  const machine = (seen: boolean) =>
    ({
      agentHasConnected: () => seen,
      consoleTail: () => "login:",
      stderrTail: () => "",
    }) as QemuProcess;
  const absent = guestNotReadyError(machine(false), false, late);
  assertEquals([absent.code, absent.message], [
    "guest_not_ready",
    "The guest agent did not start within 0.15 s, and neither did Toolsmith's " +
    "own agent; the guest read 1.5 MiB of its disk; " +
    "its console ends with:\n  | login:",
  ]);
  const there = guestNotReadyError(machine(true), false, late);
  assertMatch(
    there.message,
    /^The guest agent started but did not answer within 0.15 s; the guest read/,
  );
  const busy = guestNotReadyError(machine(true), true, late);
  assertMatch(
    busy.message,
    /^The guest's cloud-init did not finish within 0.15 s; /,
  );
  for (const { hint } of [absent, there, busy]) {
    assertMatch(hint!, /--boot-timeout/);
  }
});

Deno.test({
  name:
    "watchGuest() rejects the wait for the agent early when the guest has failed or the caller aborts",
  ...socketsHere,
  async fn() {
    const panic = new ToolsmithError("guest_panicked", "no init");
    const panicked = await waiting({ consoleFailure: () => panic });
    assertEquals(panicked.code, "guest_panicked");
    const code = { code: 1, signal: null };
    const over = await waiting({ ended: Promise.resolve(code) });
    assertMatch(over.message, /^QEMU exited with status 1/);
    const signal = AbortSignal.abort(new Error("enough"));
    assertEquals((await waiting({}, { signal })).message, "enough");
  },
});

Deno.test({
  name: "watchGuest() reports why QEMU stopped the guest",
  ...socketsHere,
  async fn() {
    const stoppedBy = (
      status: () => unknown,
      { accelerator = "tcg", signal }: {
        accelerator?: Accelerator;
        signal?: AbortSignal;
      } = {},
    ) =>
      waiting({
        isGuestStopped: () => true,
        stderrTail: () => "KVM: entry failed; rax=0",
      }, {
        signal,
        plan: { accelerator },
        qemu: ([name]) => name === "query-status" ? status() : undefined,
      });
    const full = new ToolsmithError("disk_full", "no space left");
    const haltingDiskError = Promise.resolve(full);
    assertEquals(await waiting({ haltingDiskError }), full);
    const crash = () => ({ status: "internal-error" });
    const emulated = await stoppedBy(crash);
    assertMatch(
      emulated.message,
      /^QEMU stopped the guest: KVM: entry failed; its console/,
    );
    const fast = { accelerator: "kvm" } as const;
    const error = await stoppedBy(crash, fast);
    assertEquals([error instanceof AcceleratorError, error.message], [
      true,
      "KVM: entry failed",
    ]);
    // A paused guest may be resumed, and QEMU may answer later.
    for (const status of [{ status: "paused" }, new Error("gone")]) {
      const stop = new AbortController();
      let looks = 0;
      const late = await stoppedBy(() => {
        if (++looks === 2) stop.abort(new Error("enough"));
        return status;
      }, { signal: stop.signal });
      assertEquals(late.message, "enough");
    }
  },
});

Deno.test({
  name: "connectToAgent() returns an open connection to an agent that answers",
  ...socketsHere,
  async fn() {
    await using fake = await fakeVm();
    await using agent = await fake.vm.watch.connectToAgent();
    assertEquals(await agent.execute(["guest-info"]), { version: "7.2.22" });
  },
});
