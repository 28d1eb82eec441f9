/**
 * How a machine that has ended is told: a real QEMU ends in few of these ways
 * when asked to, so what is known of one that has ended stands in.
 */
import { assertEquals, assertMatch } from "@std/assert";
import type { ToolsmithError } from "../../lib/errors.ts";
import { AcceleratorError } from "../../lib/qemu/errors.ts";
import type { Machine } from "../../lib/qemu/machine.ts";
import { bootFailure } from "../../lib/vm/_readiness.ts";

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
