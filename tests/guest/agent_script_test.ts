import { assertEquals } from "@std/assert";
import { runScriptViaAgent } from "../../lib/guest/_agent_process.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import type { QmpCommand } from "../../lib/qemu/qmp.ts";
import { changeTimerDelays } from "../support/timers.ts";

/** A guest agent that reports the script's exit at the given status query. */
function ending(looks: number, status: Record<string, unknown>) {
  const asked: QmpCommand[] = [];
  const monitor = {
    agent(command: QmpCommand) {
      asked.push(command);
      if (command[0] === "guest-exec") return Promise.resolve({ pid: 7 });
      return Promise.resolve(--looks > 0 ? { exited: false } : status);
    },
  } as Monitor;
  return { monitor, asked };
}

/** Records the pauses of a script without waiting for them. */
async function pausesOf(work: () => Promise<unknown>): Promise<number[]> {
  const pauses: number[] = [];
  using _timers = changeTimerDelays((ms) => {
    pauses.push(ms);
    return 0;
  });
  await work();
  return pauses;
}

Deno.test("runScriptViaAgent() polls the guest agent until the script exits and returns its output", async () => {
  const ended = { exited: true, exitcode: 3, "out-data": btoa("said\n") };
  const { monitor, asked } = ending(3, ended);
  const status = await runScriptViaAgent(monitor, ["echo said", "sh", "a"], {});
  assertEquals(status, { exited: true, exitCode: 3, stdout: "said\n" });
  const look: QmpCommand = ["guest-exec-status", { pid: 7 }];
  assertEquals(asked, [
    ["guest-exec", {
      path: "/bin/sh",
      arg: ["-c", "echo said", "sh", "a"],
      "capture-output": true,
    }],
    ...[look, look, look],
  ]);
});

Deno.test("runScriptViaAgent() lengthens its poll interval from 5 ms up to 100 ms", async () => {
  const pauses = await pausesOf(() => {
    const { monitor } = ending(10, { exited: true });
    return runScriptViaAgent(monitor, [""], {});
  });
  assertEquals(pauses.slice(0, 3), [5, 7.5, 11.25]);
  assertEquals(pauses.slice(-2), [100, 100]);
});

Deno.test("runScriptViaAgent() stops polling when it is aborted", async () => {
  const { monitor, asked } = ending(Infinity, {});
  const signal = AbortSignal.abort(new Error("enough"));
  const stopped = await runScriptViaAgent(monitor, [""], { signal })
    .catch((error) => error);
  assertEquals([stopped.message, asked.length], ["enough", 1]);
});
