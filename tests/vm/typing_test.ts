import { assertEquals } from "@std/assert";
import type { Machine } from "../../lib/qemu/machine.ts";
import { relay } from "../../lib/vm/_typing.ts";

/** A console that notes what is typed, each at its own pace. */
function console() {
  const typed: string[] = [];
  const machine = {
    async type(bytes: Uint8Array) {
      await new Promise((done) => setTimeout(done));
      typed.push(new TextDecoder().decode(bytes));
    },
  } as Machine;
  return { machine, typed };
}

/** What a person types, and whether nobody listens any more. */
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

Deno.test("what is typed reaches the console in order, and is known of", async () => {
  const { machine, typed } = console();
  const { input, type, end } = keyboard();
  const typing = relay(input, machine);
  await turns();
  assertEquals(typing.used(), false);
  type("a");
  type("b");
  await turns();
  assertEquals([typed, typing.used()], [["a", "b"], true]);
  end();
  await typing.stop();
});

Deno.test("a machine that is left leaves the rest to the next", async () => {
  const first = console();
  const next = console();
  const { input, type, cancelled } = keyboard();
  const typing = relay(input, first.machine);
  type("a");
  await turns();
  await typing.leave();
  assertEquals([input.locked, cancelled()], [false, false]);
  const again = relay(input, next.machine);
  type("b");
  await turns();
  assertEquals([first.typed, next.typed], [["a"], ["b"]]);
  await again.stop();
  assertEquals([input.locked, cancelled()], [false, true]);
  // Who has left it cannot take it from others.
  await typing.stop();
});

Deno.test("a console without a keyboard is typed into by nobody", async () => {
  const { machine, typed } = console();
  const typing = relay(undefined, machine);
  await typing.leave();
  await typing.stop();
  assertEquals([typing.used(), typed], [false, []]);
});

Deno.test("a console that takes no more ends the typing, and nothing else", async () => {
  const { input, type } = keyboard();
  const machine = {
    type: () => Promise.reject(new Deno.errors.BrokenPipe()),
  } as unknown as Machine;
  const typing = relay(input, machine);
  type("a");
  await turns();
  assertEquals(typing.used(), true);
  await typing.stop();
});
