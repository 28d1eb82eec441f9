import { assertEquals } from "@std/assert";
import { meetAgent } from "../../lib/guest/agent.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import {
  fakeMachine,
  type FakeMachineOptions,
  refusal,
} from "../support/fake_machine.ts";

/** Meets the agent of a machine that says what it is told to. */
async function meet(
  agent: FakeMachineOptions["agent"],
  signal?: AbortSignal,
) {
  await using machine = await fakeMachine({ agent });
  await using monitor = sharedMonitor(machine.dir);
  return await meetAgent(monitor, signal);
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

Deno.test("meetAgent() waits for cloud-init until it is aborted", async () => {
  const stop = new AbortController();
  let looks = 0;
  const agent = ({ execute }: { execute: string }) => {
    if (execute === "guest-exec") return { pid: 7 };
    if (++looks === 5) stop.abort(new Error("enough"));
    return { exited: false };
  };
  const error = await meet(agent, stop.signal).catch((error) => error);
  assertEquals(error.message, "enough");
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
