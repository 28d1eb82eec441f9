import { assertEquals } from "@std/assert";
import { watchCommand } from "../../lib/guest/exec.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import { changeTimerDelays } from "../support/timers.ts";

/** A guest whose agent reports these states in turn, and then a running shell. */
function guest(...states: { exited: boolean }[]) {
  const asked: unknown[] = [];
  const monitor = {
    agent(command: unknown) {
      asked.push(command);
      return Promise.resolve(states.shift() ?? { exited: false });
    },
  } as unknown as Monitor;
  return { monitor, asked };
}

/** Records the signals that a command gets. */
function recorder() {
  const killed: string[] = [];
  return { killed, kill: (name: string) => void killed.push(name) };
}

Deno.test("watchCommand() sends TERM for a signal that is already aborted", async () => {
  const { killed, kill } = recorder();
  const signal = AbortSignal.abort();
  using _watch = watchCommand(guest().monitor, 7, { kill, signal });
  await new Promise((done) => setTimeout(done));
  assertEquals(killed, ["TERM"]);
});

Deno.test("watchCommand() sends KILL 2 s after TERM and gives up 2 s later, with the signal's reason", async () => {
  const waits: number[] = [];
  using _timers = changeTimerDelays((ms) => {
    if (ms === 3000) return 60_000;
    waits.push(ms);
    return 0;
  });
  const { killed, kill } = recorder();
  const stop = new AbortController();
  const options = { kill, signal: stop.signal };
  using watch = watchCommand(guest().monitor, 7, options);
  assertEquals(killed, []);
  stop.abort(new Error("enough"));
  const error = await watch.failed.catch((error) => error);
  assertEquals(error.message, "enough");
  assertEquals([killed, waits], [["TERM", "KILL"], [2000, 2000]]);
});

Deno.test("watchCommand() waits as long as it is asked to before KILL", async () => {
  const waits: number[] = [];
  using _timers = changeTimerDelays((ms) => {
    waits.push(ms);
    return ms === 3000 ? 60_000 : 0;
  });
  const { kill } = recorder();
  const options = { kill, signal: AbortSignal.abort(), killAfterMs: 7 };
  using watch = watchCommand(guest().monitor, 7, options);
  await watch.failed.catch(() => {});
  assertEquals(waits, [3000, 7, 2000]);
});

Deno.test("watchCommand() sends nothing once it is disposed", async () => {
  const { killed, kill } = recorder();
  const stop = new AbortController();
  {
    using _watch = watchCommand(guest().monitor, 7, {
      ...{ kill, signal: stop.signal },
    });
  }
  stop.abort();
  await new Promise((done) => setTimeout(done));
  assertEquals(killed, []);
});

Deno.test("watchCommand() reports a lost connection 3 s after the shell has exited", async () => {
  const waits: number[] = [];
  using _timers = changeTimerDelays((ms) => {
    waits.push(ms);
    return 0;
  });
  const { monitor, asked } = guest({ exited: false }, { exited: true });
  const { signal } = new AbortController();
  const { kill } = recorder();
  using watch = watchCommand(monitor, 7, { kill, signal });
  const error = await watch.failed.catch((error) => error);
  assertEquals(error instanceof VmDisconnectedError, true);
  const look = ["guest-exec-status", { pid: 7 }];
  assertEquals([asked, waits], [[look, look], [3000, 3000, 3000]]);
  // Once disposed, it stops polling and keeps no timer.
  const never = watchCommand(monitor, 7, { kill, signal });
  never[Symbol.dispose]();
  const stopped = await never.failed.catch((error) => error);
  assertEquals([stopped.name, asked.length], ["AbortError", 2]);
});
