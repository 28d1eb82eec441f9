import { assertEquals } from "@std/assert";
import { identifyAgent } from "../../lib/guest/setup.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import {
  fakeMachine,
  type FakeMachineOptions,
  refusal,
} from "../support/fake_machine.ts";

/** Identifies a fake agent with these answers. */
async function identify(
  agent: FakeMachineOptions["agent"],
  signal?: AbortSignal,
) {
  await using machine = await fakeMachine({ agent });
  await using monitor = sharedMonitor(machine.dir);
  return await identifyAgent(monitor, signal);
}

Deno.test("identifyAgent() with qemu-ga returns its version after cloud-init has finished", async () => {
  let looks = 0;
  const scripts: unknown[] = [];
  const agent = await identify(({ execute, arguments: args }) => {
    if (execute === "guest-info") return { version: "7.2.22" };
    if (execute === "guest-exec") scripts.push(args.arg);
    if (execute === "guest-exec-status") {
      return ++looks < 4 ? { exited: false } : { exited: true, exitcode: 0 };
    }
    return { pid: 7 };
  });
  assertEquals([agent, looks, scripts.length], ["qemu-ga 7.2.22", 4, 1]);
});

Deno.test("identifyAgent() waits for cloud-init until it is aborted", async () => {
  const stop = new AbortController();
  let looks = 0;
  const agent = ({ execute }: { execute: string }) => {
    if (execute === "guest-exec") return { pid: 7 };
    if (++looks === 5) stop.abort(new Error("enough"));
    return { exited: false };
  };
  const error = await identify(agent, stop.signal).catch((error) => error);
  assertEquals(error.message, "enough");
});

Deno.test("identifyAgent() returns undefined when the agent refuses guest-info and guest-exec", async () => {
  const agent = ({ id }: { id: number }) => refusal("Command not allowed", id);
  assertEquals(await identify(agent), undefined);
});

Deno.test("identifyAgent() does not wait for cloud-init when the seed disk's agent answers", async () => {
  const agent = await identify(({ execute }) =>
    execute === "guest-info" ? { version: "toolsmith" } : refusal("not asked")
  );
  assertEquals(agent, "toolsmith");
});
