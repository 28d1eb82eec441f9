import { assertEquals } from "@std/assert";
import type { QemuProcess } from "../../lib/qemu/qemu_process.ts";
import { ConsoleInput } from "../../lib/vm/_boot_attempt.ts";

/** A fake console that records input asynchronously. */
function console() {
  const typed: string[] = [];
  const machine = {
    async writeToConsole(bytes: Uint8Array) {
      await new Promise((done) => setTimeout(done));
      typed.push(new TextDecoder().decode(bytes));
    },
  } as QemuProcess;
  return { machine, typed };
}

/** An input stream that the test types into, and whether it was cancelled. */
function keyboard() {
  let controller!: ReadableStreamDefaultController<Uint8Array>;
  let cancelled = false;
  const input = new ReadableStream<Uint8Array>({
    start: (it) => void (controller = it),
    cancel: () => void (cancelled = true),
  });
  return {
    input,
    type: (text: string) => controller.enqueue(new TextEncoder().encode(text)),
    end: () => controller.close(),
    cancelled: () => cancelled,
  };
}

async function turns() {
  for (let turn = 0; turn < 5; turn++) {
    await new Promise((done) => setTimeout(done));
  }
}

Deno.test("ConsoleInput forwards input in order and reports that it was used", async () => {
  const { machine, typed } = console();
  const { input, type, end } = keyboard();
  const typing = new ConsoleInput(input, machine);
  await turns();
  assertEquals(typing.hasForwarded, false);
  type("a");
  type("b");
  await turns();
  assertEquals([typed, typing.hasForwarded], [["a", "b"], true]);
  end();
  await typing.cancel();
});

Deno.test("ConsoleInput.pause() leaves further input to the next reader", async () => {
  const first = console();
  const next = console();
  const { input, type, cancelled } = keyboard();
  const typing = new ConsoleInput(input, first.machine);
  type("a");
  await turns();
  await typing.pause();
  assertEquals([input.locked, cancelled()], [false, false]);
  const again = new ConsoleInput(input, next.machine);
  type("b");
  await turns();
  assertEquals([first.typed, next.typed], [["a"], ["b"]]);
  await again.cancel();
  assertEquals([input.locked, cancelled()], [false, true]);
  // Cancelling a paused input does not affect its next reader.
  await typing.cancel();
});

Deno.test("ConsoleInput.resume() forwards input again after pause()", async () => {
  const { machine, typed } = console();
  const { input, type } = keyboard();
  const typing = new ConsoleInput(input, machine);
  typing.resume();
  await typing.pause();
  typing.resume();
  type("a");
  await turns();
  assertEquals([typed, typing.hasForwarded], [["a"], true]);
  await typing.cancel();
});

Deno.test("ConsoleInput without an input stream forwards nothing", async () => {
  const { machine, typed } = console();
  const typing = new ConsoleInput(undefined, machine);
  await typing.pause();
  await typing.cancel();
  assertEquals([typing.hasForwarded, typed], [false, []]);
});

Deno.test("ConsoleInput stops quietly when the console connection breaks", async () => {
  const { input, type } = keyboard();
  const machine = {
    writeToConsole: () => Promise.reject(new Deno.errors.BrokenPipe()),
  } as unknown as QemuProcess;
  const typing = new ConsoleInput(input, machine);
  type("a");
  await turns();
  assertEquals(typing.hasForwarded, true);
  await typing.cancel();
});
