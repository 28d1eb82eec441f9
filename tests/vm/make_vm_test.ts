/**
 * The steps in which a machine ends: real ones seldom need more than the first.
 */
import { assert, assertEquals } from "@std/assert";
import { RefusedError } from "../../lib/qemu/errors.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import { makeVm } from "../../lib/vm/_make_vm.ts";
import type { VmParts } from "../../lib/vm/vm.ts";
import { hurriedTimers } from "../support/timers.ts";

/** A machine that ends at one of the steps, or before the first. */
function machine(endsAt: string, more: Partial<VmParts> = {}) {
  const done: string[] = [];
  const ended = Promise.withResolvers<void>();
  const step = (name: string) => {
    done.push(name);
    if (name === endsAt) ended.resolve();
  };
  if (endsAt === "before") ended.resolve();
  const parts: VmParts = {
    facts: {
      ...{ image: "/a.qcow2", pid: 1, dir: "/tmp", version: "7.2.22" },
      ...{ accelerator: "tcg", memory: 512, cpus: 1, network: false },
      shares: [],
    },
    monitor: {
      // deno-lint-ignore require-await -- a refusal rejects.
      async qemu([[name]]: [string][]) {
        step(name);
        throw new RefusedError("it ends, and says nothing more");
      },
      [Symbol.asyncDispose]: () => Promise.resolve(step("monitor closed")),
    } as unknown as Monitor,
    ended: ended.promise,
    graceMs: 60_000,
    failure: () => Promise.resolve(undefined),
    kill: () => Promise.resolve(step("killed")),
    cleanUp: () => Promise.resolve(step("cleaned up")),
    emit(event) {
      assert(event.type === "shutdown" && event.elapsedMs >= 0);
      done.push(event.how);
    },
    ...more,
  };
  return { vm: makeVm(parts), done, parts };
}

const REST = ["monitor closed", "cleaned up"];

/** Lets the seconds pass at once in which QEMU may end. */
async function quickly<T>(work: () => Promise<T>) {
  const waits: number[] = [];
  using _timers = hurriedTimers((ms) => {
    if (ms > 0) waits.push(ms);
    return Math.min(ms, 20);
  });
  return { result: await work(), waits };
}

Deno.test("a machine that has ended is asked for nothing", async () => {
  const { vm, done, parts } = machine("before");
  await vm.stop();
  assertEquals(done, [...REST, "powered_down"]);
  assertEquals([vm.facts, vm.ended], [parts.facts, parts.ended]);
});

Deno.test("a guest powers down by itself where it is given time", async () => {
  const { vm, done } = machine("system_powerdown");
  await vm.stop();
  assertEquals(done, ["system_powerdown", ...REST, "powered_down"]);
});

Deno.test("a guest that is given no time is not asked, and QEMU ends it", async () => {
  for (const [usual, asked] of [[{ graceMs: 0 }, {}], [{}, { graceMs: 0 }]]) {
    const { vm, done } = machine("quit", usual);
    await vm.stop(asked);
    assertEquals(done, ["quit", ...REST, "stopped"]);
  }
});

Deno.test("a guest that does not power down is ended by QEMU, and QEMU by force", async () => {
  const stopped = machine("quit");
  const { waits } = await quickly(() => stopped.vm.stop({ graceMs: 7000 }));
  assertEquals(stopped.done, ["system_powerdown", "quit", ...REST, "stopped"]);
  // The grace is what was asked for; each question has three seconds.
  assertEquals(waits, [3000, 7000, 3000, 5000]);
  const killed = machine("killed", { graceMs: 1 });
  await quickly(() => killed.vm.stop());
  assertEquals(killed.done, [
    ...["system_powerdown", "quit", "killed", ...REST, "killed"],
  ]);
});

Deno.test("a stop is made once, though it is asked for often", async () => {
  const { vm, done } = machine("quit", { graceMs: 0 });
  await Promise.all([vm.stop(), vm.stop()]);
  await vm.stop();
  assertEquals(done, ["quit", ...REST, "stopped"]);
});

Deno.test("a stop that was given up may be tried again", async () => {
  const { vm, done } = machine("quit");
  const signal = AbortSignal.abort(new Error("enough"));
  const error = await vm.stop({ signal }).catch((error) => error);
  assertEquals([error.message, done], ["enough", ["system_powerdown"]]);
  await vm.stop({ graceMs: 0 });
  assertEquals(done.slice(1), ["quit", ...REST, "stopped"]);
});
