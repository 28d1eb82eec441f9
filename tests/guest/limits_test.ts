import { assertEquals } from "@std/assert";
import { endOnAbort, watchShell } from "../../lib/guest/_limits.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import { hurriedTimers } from "../support/timers.ts";

Deno.test("a cancel while a command starts ends the command", () => {
  const killed: string[] = [];
  const signal = AbortSignal.abort();
  using _watch = endOnAbort((name) => killed.push(name), { signal });
  assertEquals(killed, ["TERM"]);
});

Deno.test("a command that ignores TERM and KILL is given up", async () => {
  const killed: string[] = [];
  const stop = new AbortController();
  const options = { signal: stop.signal, killAfterMs: 10 };
  using watch = endOnAbort((name) => killed.push(name), options);
  assertEquals(killed, []);
  stop.abort();
  await watch.givenUp;
  assertEquals(killed, ["TERM", "KILL"]);
});

Deno.test("a command has two seconds after TERM, and a guest two more", () => {
  const waits: number[] = [];
  const killed: string[] = [];
  using _timers = hurriedTimers((ms) => {
    waits.push(ms);
    return 60_000;
  });
  const stop = new AbortController();
  {
    using _watch = endOnAbort((name) => killed.push(name), stop);
    stop.abort();
  }
  // The watch is over, and with it its timers.
  assertEquals([killed, waits], [["TERM"], [2000, 4000]]);
  const late = new AbortController();
  {
    using _watch = endOnAbort((name) => killed.push(name), late);
  }
  late.abort();
  assertEquals(killed, ["TERM"]);
});

Deno.test("a shell that is gone without a word is noticed, and given a moment more", async () => {
  const waits: number[] = [];
  using _timers = hurriedTimers((ms) => {
    waits.push(ms);
    return 0;
  });
  const states = [{ exited: false }, { exited: true }];
  const asked: unknown[] = [];
  const monitor = {
    agent(command: unknown) {
      asked.push(command);
      return Promise.resolve(states.shift());
    },
  } as unknown as Monitor;
  using watch = watchShell(monitor, 7);
  const error = await watch.lost.catch((error) => error);
  assertEquals(error instanceof VmDisconnectedError, true);
  const look = ["guest-exec-status", { pid: 7 }];
  assertEquals([asked, waits], [[look, look], [3000, 3000, 3000]]);
  // One that is disposed asks no more, and keeps no timer.
  const never = watchShell(monitor, 7);
  never[Symbol.dispose]();
  const stopped = await never.lost.catch((error) => error);
  assertEquals([stopped.name, asked.length], ["AbortError", 2]);
});
