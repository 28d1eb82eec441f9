import { assertEquals } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import { runScript } from "../../lib/guest/_script.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import type { Command } from "../../lib/qemu/qmp.ts";
import { failure } from "../support/failure.ts";
import { hurriedTimers } from "../support/timers.ts";

/** An agent whose script ends at the look of that number. */
function ending(looks: number, status: Record<string, unknown>) {
  const asked: Command[] = [];
  const monitor = {
    agent(command: Command) {
      asked.push(command);
      if (command[0] === "guest-exec") return Promise.resolve({ pid: 7 });
      return Promise.resolve(--looks > 0 ? { exited: false } : status);
    },
  } as Monitor;
  return { monitor, asked };
}

/** Runs a script, and notes its pauses; they take no time. */
async function pausesOf(work: () => Promise<unknown>): Promise<number[]> {
  const pauses: number[] = [];
  using _timers = hurriedTimers((ms) => {
    pauses.push(ms);
    return 0;
  });
  await work();
  return pauses;
}

const late = () => new ToolsmithError("timeout", "too late");
const how = { limit: { ms: 60_000, late } };

Deno.test("a script runs by the agent alone, which is asked until it has ended", async () => {
  const ended = { exited: true, exitcode: 3, "out-data": btoa("said\n") };
  const { monitor, asked } = ending(3, ended);
  const status = await runScript(monitor, ["echo said", "sh", "a"], how);
  assertEquals(status, { exited: true, exitCode: 3, output: "said\n" });
  const look: Command = ["guest-exec-status", { pid: 7 }];
  assertEquals(asked, [
    ["guest-exec", {
      path: "/bin/sh",
      arg: ["-c", "echo said", "sh", "a"],
      "capture-output": true,
    }],
    ...[look, look, look],
  ]);
});

Deno.test("a script that is quick is noticed at once, a slow one costs few questions", async () => {
  const run = (options = {}) =>
    pausesOf(() => {
      const { monitor } = ending(6, { exited: true });
      return runScript(monitor, [""], { ...how, ...options });
    });
  assertEquals(await run(), [5, 10, 20, 20, 20, 20]);
  assertEquals(await run({ pauseMs: 100 }), [5, 10, 20, 40, 80, 100]);
});

Deno.test("a script that does not end in its time is given up", async () => {
  const { monitor, asked } = ending(Infinity, {});
  const error = await failure(
    "timeout",
    () => runScript(monitor, [""], { limit: { ms: 0, late } }),
  );
  assertEquals([error.message, asked.length], ["too late", 1]);
  const signal = AbortSignal.abort(new Error("enough"));
  const stopped = await runScript(monitor, [""], { ...how, signal })
    .catch((error) => error);
  assertEquals(stopped.message, "enough");
});
