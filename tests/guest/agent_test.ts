import { assertEquals } from "@std/assert";
import { meetAgent } from "../../lib/guest/agent.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import { failure } from "../support/failure.ts";
import {
  fakeMachine,
  type FakeMachineOptions,
  refusal,
} from "../support/fake_machine.ts";

/** Meets the agent of a machine that says what it is told to. */
async function meet(
  agent: FakeMachineOptions["agent"],
  timeoutMs = 10_000,
) {
  await using machine = await fakeMachine({ agent });
  await using monitor = sharedMonitor(machine.dir);
  return await meetAgent(monitor, { timeoutMs });
}

Deno.test("a guest is ready when its cloud-init is done, whichever agent answers before", async () => {
  let looks = 0;
  const scripts: unknown[] = [];
  const agent = await meet(({ execute, arguments: args }) => {
    if (execute === "guest-info") return { version: "7.2.22" };
    if (execute === "guest-exec") scripts.push(args.arg);
    if (execute === "guest-exec-status") {
      return ++looks < 4 ? { exited: false } : { exited: true, exitcode: 0 };
    }
    return { pid: 7 };
  });
  assertEquals([agent, looks, scripts.length], ["qemu-ga 7.2.22", 4, 1]);
});

Deno.test("cloud-init that never ends is given up with the boot", async () => {
  const agent = ({ execute }: { execute: string }) =>
    execute === "guest-exec" ? { pid: 7 } : { exited: false };
  await failure("guest_not_ready", () => meet(agent, 300));
});

Deno.test("an agent that may run nothing, or say nothing of itself, is met all the same", async () => {
  const agent = ({ id }: { id: number }) => refusal("Command not allowed", id);
  assertEquals(await meet(agent), undefined);
});

Deno.test("the agent of the seed has waited for cloud-init itself", async () => {
  const agent = await meet(({ execute }) =>
    execute === "guest-info" ? { version: "toolsmith" } : refusal("not asked")
  );
  assertEquals(agent, "toolsmith");
});
