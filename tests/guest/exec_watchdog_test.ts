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
  const tellGuest = (name: string) => void killed.push(name);
  return { killed, ports: { shellPid: 7, tellGuest } };
}

Deno.test("watchCommand() sends TERM for a signal that is already aborted", async () => {
  const { killed, ports } = recorder();
  const signal = AbortSignal.abort();
  const stop = new AbortController();
  const how = { signal, stop: stop.signal };
  const watch = watchCommand(guest().monitor, ports, how).catch(() => {});
  await new Promise((done) => setTimeout(done));
  assertEquals(killed, ["TERM"]);
  stop.abort();
  await watch;
});

Deno.test("watchCommand() sends KILL 2 s after TERM and gives up 2 s later, with the signal's reason", async () => {
  const waits: number[] = [];
  using _timers = changeTimerDelays((ms) => {
    if (ms === 3000) return 60_000;
    waits.push(ms);
    return 0;
  });
  const { killed, ports } = recorder();
  const [abort, stop] = [new AbortController(), new AbortController()];
  const options = { signal: abort.signal, stop: stop.signal };
  const watch = watchCommand(guest().monitor, ports, options);
  assertEquals(killed, []);
  abort.abort(new Error("enough"));
  const error = await watch.catch((error) => error);
  assertEquals(error.message, "enough");
  assertEquals([killed, waits], [["TERM", "KILL"], [2000, 2000]]);
  stop.abort();
});

Deno.test("watchCommand() waits as long as it is asked to before KILL", async () => {
  const waits: number[] = [];
  using _timers = changeTimerDelays((ms) => {
    waits.push(ms);
    return ms === 3000 ? 60_000 : 0;
  });
  const { ports } = recorder();
  const stop = new AbortController();
  const options = { signal: AbortSignal.abort(), killAfterMs: 7 };
  const how = { ...options, stop: stop.signal };
  await watchCommand(guest().monitor, ports, how).catch(() => {});
  assertEquals(waits.toSorted(), [2000, 3000, 7]);
  stop.abort();
});

Deno.test("watchCommand() sends nothing once it is stopped", async () => {
  const { killed, ports } = recorder();
  const [abort, stop] = [new AbortController(), new AbortController()];
  const how = { signal: abort.signal, stop: stop.signal };
  const watch = watchCommand(guest().monitor, ports, how).catch(() => {});
  stop.abort();
  abort.abort();
  await watch;
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
  const { ports } = recorder();
  const stop = new AbortController();
  const how = { signal, stop: stop.signal };
  const error = await watchCommand(monitor, ports, how).catch((error) => error);
  assertEquals(error instanceof VmDisconnectedError, true);
  const look = ["guest-exec-status", { pid: 7 }];
  assertEquals([asked, waits], [[look, look], [3000, 3000, 3000]]);
  // Once stopped, it polls no more and keeps no timer.
  const never = watchCommand(monitor, ports, how);
  stop.abort();
  const stopped = await never.catch((error) => error);
  assertEquals([stopped.name, asked.length], ["AbortError", 2]);
});
