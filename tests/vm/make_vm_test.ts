/**
 * The escalation of stop(): power down, quit, kill. Real VMs rarely need the last.
 */
import { assert, assertEquals } from "@std/assert";
import { CommandRefusedError } from "../../lib/qemu/errors.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import { makeVm } from "../../lib/vm/_make_vm.ts";
import type { VmParts } from "../../lib/vm/_make_vm.ts";
import { changeTimerDelays } from "../support/timers.ts";

/** A fake VM that ends at one of the steps, or before the first. */
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
        throw new CommandRefusedError("it ends, and says nothing more");
      },
      [Symbol.asyncDispose]: () => Promise.resolve(step("monitor closed")),
    } as unknown as Monitor,
    ended: ended.promise,
    graceMs: 60_000,
    endReason: () => Promise.resolve(undefined),
    killQemu: () => Promise.resolve(step("killed")),
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

/** Shortens the waits for QEMU's end, and records them. */
async function quickly<T>(work: () => Promise<T>) {
  const waits: number[] = [];
  using _timers = changeTimerDelays((ms) => {
    if (ms > 0) waits.push(ms);
    return Math.min(ms, 20);
  });
  return { result: await work(), waits };
}

Deno.test("stop() sends no command to a VM that has ended", async () => {
  const { vm, done, parts } = machine("before");
  await vm.stop();
  assertEquals(done, [...REST, "powered_down"]);
  assertEquals([vm.facts, vm.ended], [parts.facts, parts.ended]);
});

Deno.test("stop() lets the guest power down when graceMs is above 0", async () => {
  const { vm, done } = machine("system_powerdown");
  await vm.stop();
  assertEquals(done, ["system_powerdown", ...REST, "powered_down"]);
});

Deno.test("stop() quits QEMU at once when graceMs is 0", async () => {
  for (const [usual, asked] of [[{ graceMs: 0 }, {}], [{}, { graceMs: 0 }]]) {
    const { vm, done } = machine("quit", usual);
    await vm.stop(asked);
    assertEquals(done, ["quit", ...REST, "stopped"]);
  }
});

Deno.test("stop() quits QEMU after the grace period and kills a QEMU that does not quit", async () => {
  const stopped = machine("quit");
  const { waits } = await quickly(() => stopped.vm.stop({ graceMs: 7000 }));
  assertEquals(stopped.done, ["system_powerdown", "quit", ...REST, "stopped"]);
  // The requested grace period; each QMP command has three seconds.
  assertEquals(waits, [3000, 7000, 3000, 5000]);
  const killed = machine("killed", { graceMs: 1 });
  await quickly(() => killed.vm.stop());
  assertEquals(killed.done, [
    ...["system_powerdown", "quit", "killed", ...REST, "killed"],
  ]);
});

Deno.test("stop() stops the VM once when called repeatedly", async () => {
  const { vm, done } = machine("quit", { graceMs: 0 });
  await Promise.all([vm.stop(), vm.stop()]);
  await vm.stop();
  assertEquals(done, ["quit", ...REST, "stopped"]);
});

Deno.test("stop() can be repeated after an abort", async () => {
  const { vm, done } = machine("quit");
  const signal = AbortSignal.abort(new Error("enough"));
  const error = await vm.stop({ signal }).catch((error) => error);
  assertEquals([error.message, done], ["enough", ["system_powerdown"]]);
  await vm.stop({ graceMs: 0 });
  assertEquals(done.slice(1), ["quit", ...REST, "stopped"]);
});
