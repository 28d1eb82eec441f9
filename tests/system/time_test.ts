import { assert, assertEquals, assertRejects } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  abortable,
  settlesWithin,
  sleep,
  startDeadline,
} from "../../lib/system/time.ts";
import { watchedSignal } from "../support/signals.ts";

Deno.test("startDeadline() aborts a wait with a timeout error that names its subject", async () => {
  using limit = startDeadline(20, "The command");
  const error = await assertRejects(
    () => sleep(5_000, limit.signal),
    ToolsmithError,
    "The command did not end within 0.02 s",
  );
  assertEquals(error.code, "timeout");
});

Deno.test("startDeadline() passes on the reason of the caller's signal", async () => {
  const caller = new AbortController();
  using limit = startDeadline(5_000, "The command", caller.signal);
  const wait = assertRejects(() => sleep(5_000, limit.signal), Error, "mine");
  caller.abort(new Error("mine"));
  await wait;
});

Deno.test("startDeadline() sets no timer for an infinite deadline, and a disposed one never aborts", async () => {
  using forever = startDeadline(Infinity, "The command");
  using month = startDeadline(30 * 24 * 3_600_000, "The command");
  const lifted = startDeadline(5, "The command");
  lifted[Symbol.dispose]();
  // One millisecond more than the longest timer.
  using longest = startDeadline(2 ** 31, "The command");
  await sleep(30);
  assert(!longest.signal.aborted);
  assert(!forever.signal.aborted && !lifted.signal.aborted);
  assert(!month.signal.aborted);
});

Deno.test("sleep() and abortable() remove their abort listeners when done", async () => {
  const { signal, listeners } = watchedSignal();
  await sleep(1, signal);
  await abortable(Promise.resolve(), signal);
  await abortable(Promise.reject(new Error()), signal).catch(() => {});
  assertEquals(listeners(), 0);
});

Deno.test("settlesWithin() returns whether the promise settled in time", async () => {
  assertEquals(await settlesWithin(Promise.resolve(1), 1_000), true);
  assertEquals(await settlesWithin(Promise.reject(new Error()), 1_000), true);
  assertEquals(await settlesWithin(new Promise(() => {}), 5), false);
  for (const ms of [Infinity, 2 ** 31]) {
    // Such a timer would fire at once.
    assertEquals(await settlesWithin(sleep(20), ms), true);
  }
});

Deno.test("abortable() rejects with the signal's reason, or settles like the promise", async () => {
  const never = new Promise<void>(() => {});
  assertEquals(await abortable(Promise.resolve(1)), 1);
  const { signal } = new AbortController();
  assertEquals(await abortable(Promise.resolve(2), signal), 2);
  const broken = Promise.reject(new Error("broken"));
  await assertRejects(() => abortable(broken, signal), Error, "broken");
  const stop = new AbortController();
  const wait = assertRejects(
    () => abortable(never, stop.signal),
    Error,
    "mine",
  );
  stop.abort(new Error("mine"));
  await wait;
  // Already aborted: a later rejection is ignored.
  const late = Promise.reject(new Error("late"));
  await assertRejects(() => abortable(late, stop.signal), Error, "mine");
  const waiting = settlesWithin(never, 60_000, { signal: stop.signal });
  await assertRejects(() => waiting, Error, "mine");
});
