/**
 * How a machine that has ended is told: a real QEMU ends in few of these ways
 * when asked to, so what is known of one that has ended stands in.
 */
import { assertEquals, assertMatch } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import { AcceleratorError } from "../../lib/qemu/errors.ts";
import type { Machine } from "../../lib/qemu/machine.ts";
import { NoProgress } from "../../lib/vm/_progress.ts";
import { bootFailure, notReady, whenReady } from "../../lib/vm/_readiness.ts";
import { failure } from "../support/failure.ts";
import { fakeStart, type FakeStartOptions } from "../support/fake_start.ts";

/** What is said of a QEMU that has ended so. */
function failureOf(
  { code = 1, stderr = "", accelerator = "tcg", console = "" },
) {
  return bootFailure({
    ended: Promise.resolve({ code, signal: null }),
    accelerator,
    stderrTail: () => stderr,
    tail: () => console,
    consoleFailure: () => undefined,
  } as unknown as Machine);
}

Deno.test("a QEMU that has ended is told by its status, its words, and the console's end", async () => {
  const words = await failureOf({ stderr: "qemu: no such bus" });
  assertMatch(words.message, /^QEMU ended with status 1: qemu: no such bus; /);
  const silent = await failureOf({ code: 3, console: "one\ntwo" });
  assertEquals(
    silent.message,
    "QEMU ended with status 3: without a word; its console ends with:\n  | one\n  | two",
  );
  const { message } = await failureOf({ code: 0, stderr: "a warning" });
  assertEquals(
    message,
    "The guest ended or restarted by itself; its console shows nothing",
  );
});

Deno.test("an accelerator that has ended QEMU is to blame, emulation never is", async () => {
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

Deno.test("a guest that has cost QEMU its memory is told as that", async () => {
  const stderr = "qemu: failed to allocate 1048576 bytes";
  for (const accelerator of ["tcg", "kvm"]) {
    const error = await failureOf({ code: 133, stderr, accelerator });
    assertEquals((error as ToolsmithError).code, "guest_failed");
    assertMatch(error.message, /more memory than it may have/);
  }
});

Deno.test("what a console says of a guest that has failed comes first, with what to do", async () => {
  const failed = (kind: "panicked" | "not_bootable") =>
    bootFailure({
      consoleFailure: () => ({ kind, words: "words" }),
      // It may still run: its end is not waited for.
      ended: new Promise(() => {}),
      tail: () => "one",
    } as unknown as Machine) as Promise<ToolsmithError>;
  const panicked = await failed("panicked");
  assertEquals([panicked.code, panicked.message], [
    "guest_panicked",
    "The guest's kernel panicked: words; its console ends with:\n  | one",
  ]);
  const empty = await failed("not_bootable");
  assertEquals(empty.code, "boot_failed");
  assertMatch(empty.message, /^The image does not boot: words; /);
  assertMatch(empty.hint!, /--firmware .* --arch /);
});

Deno.test("the status that ends QEMU by a signal is the accelerator's, any other its own", async () => {
  for (const [code, blamed] of [[127, false], [128, true]] as const) {
    const error = await failureOf({ code, accelerator: "kvm", stderr: "x" });
    assertEquals(error instanceof AcceleratorError, blamed, `${code}`);
  }
});

/** Waits for a guest whose agent says nothing. */
async function waiting(
  machine: Partial<Machine>,
  more: { signal?: AbortSignal } & FakeStartOptions = {},
) {
  const silent = { agent: () => undefined, reads: false };
  await using fake = await fakeStart({ ...silent, ...more, machine });
  const { dir } = fake.start.qemu;
  const error = await whenReady(fake.start.machine, { dir, ...more })
    .catch((error) => error);
  return error as ToolsmithError;
}

const socketsHere = { ignore: Deno.build.os === "windows" };

Deno.test("notReady() says what was waited for, what the guest did, and shows its console", () => {
  const late = new NoProgress(0.15, "the guest read 1.5 MiB of its disk");
  const machine = (seen: boolean) =>
    ({ agentSeen: () => seen, tail: () => "login:" }) as Machine;
  const absent = notReady(machine(false), late);
  assertEquals([absent.code, absent.message], [
    "guest_not_ready",
    "The guest agent did not start within 0.15 s, nor did the image take the one " +
    "that Toolsmith offers; the guest read 1.5 MiB of its disk; " +
    "its console ends with:\n  | login:",
  ]);
  const there = notReady(machine(true), late);
  assertMatch(
    there.message,
    /^The guest agent is there and did not answer within 0.15 s; the guest read/,
  );
  const busy = notReady(machine(true), late, "cloud-init");
  assertMatch(
    busy.message,
    /^The guest's cloud-init did not end within 0.15 s; /,
  );
  for (const { hint } of [absent, there, busy]) {
    assertMatch(hint!, /--boot-timeout/);
  }
});

Deno.test({
  name:
    "a guest that has failed, or a cancel, is noticed before the time is over",
  ...socketsHere,
  async fn() {
    const panic = { kind: "panicked", words: "no init" } as const;
    const panicked = await waiting({ consoleFailure: () => panic });
    assertEquals(panicked.code, "guest_panicked");
    const code = { code: 1, signal: null };
    const over = await waiting({ ended: Promise.resolve(code) });
    assertMatch(over.message, /^QEMU ended with status 1/);
    const signal = AbortSignal.abort(new Error("enough"));
    assertEquals((await waiting({}, { signal })).message, "enough");
  },
});

Deno.test({
  name: "a guest that QEMU has stopped is told by what has stopped it",
  ...socketsHere,
  async fn() {
    const stoppedBy = (
      status: unknown,
      { accelerator = "tcg", signal }: {
        accelerator?: string;
        signal?: AbortSignal;
      } = {},
    ) =>
      waiting({
        stopped: () => true,
        accelerator: accelerator as Machine["accelerator"],
        stderrTail: () => "KVM: entry failed; rax=0",
        halted: failure("disk_full", () => {
          throw new ToolsmithError("disk_full", "no space left");
        }),
      }, {
        signal,
        qemu: ([name]) => name === "query-status" ? status : undefined,
      });
    const full = await stoppedBy({ status: "io-error" });
    assertEquals(full.code, "disk_full");
    const emulated = await stoppedBy({ status: "internal-error" });
    assertMatch(
      emulated.message,
      /^QEMU stopped the guest: KVM: entry failed; its console/,
    );
    const fast = { accelerator: "kvm" };
    const error = await stoppedBy({ status: "internal-error" }, fast);
    assertEquals([error instanceof AcceleratorError, error.message], [
      true,
      "KVM: entry failed",
    ]);
    // Who has paused it, or does not answer, may let it go on.
    for (const status of [{ status: "paused" }, new Error("gone")]) {
      const signal = AbortSignal.timeout(150);
      const late = await stoppedBy(status, { signal });
      assertEquals(late.name, "TimeoutError");
    }
  },
});

Deno.test({
  name: "an agent that answers is met, and its connection is the caller's",
  ...socketsHere,
  async fn() {
    await using fake = await fakeStart();
    const { dir } = fake.start.qemu;
    using agent = await whenReady(fake.start.machine, { dir });
    assertEquals(await agent.send(["guest-info"]), { version: "7.2.22" });
    agent[Symbol.dispose]();
    await agent.closed;
  },
});
