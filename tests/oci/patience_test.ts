import { assert, assertEquals, assertThrows } from "@std/assert";
import { patience } from "../../lib/oci/_patience.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import type { Retry } from "../../lib/system/retry.ts";
import { BusyError } from "../../lib/system/retry_after.ts";
import { replace } from "../support/replace.ts";

const MIB = 1024 * 1024;
const cut = new ToolsmithError("transfer_interrupted", "cut");

function made(retries: number) {
  const seen: Retry[] = [];
  const state = { bytes: 0 };
  const { ready, failed } = patience({
    retries,
    retryDelayMs: 20,
    bytes: () => state.bytes,
    onRetry: (retry) => seen.push(retry),
  });
  return { ready, failed, seen, state };
}

Deno.test("what befalls all connections at the same time counts once", async () => {
  const { ready, failed, seen } = made(1);
  for (let count = 0; count < 4; count++) failed(cut);
  assertEquals(seen.map(({ attempt }) => attempt), [2]);
  await ready();
  assertThrows(() => failed(cut), ToolsmithError, "cut");
});

Deno.test("a transfer that gets on is tried as often as it takes", async () => {
  const { ready, failed, seen, state } = made(1);
  for (let count = 0; count < 5; count++) {
    failed(cut);
    await ready();
    state.bytes += MIB;
  }
  assertEquals(seen.map(({ attempt }) => attempt), [2, 2, 2, 2, 2]);
  failed(cut);
  await ready();
  state.bytes += MIB - 1;
  assertThrows(() => failed(cut), ToolsmithError);
});

Deno.test("a pause is as long as the server asks, up to five minutes", () => {
  const { failed, seen } = made(9);
  failed(new BusyError(cut, 60_000));
  assert(seen[0].delayMs >= 60_000);
  const late = new BusyError(cut, 301_000);
  assertThrows(() => made(9).failed(late), BusyError);
});

Deno.test("what does not pass is not tried again", () => {
  const { failed, seen } = made(9);
  const error = new ToolsmithError("disk_full", "full");
  assertThrows(() => failed(error), ToolsmithError, "full");
  assertEquals(seen, []);
});

/** A patience whose clock is the test's; what is waited for passes at once. */
function timed(options: Partial<Parameters<typeof patience>[0]> = {}) {
  const clock = { time: 1000, waits: [] as number[] };
  const undo = new DisposableStack();
  undo.use(replace(performance, { now: () => clock.time }));
  // The middle of what a pause is spread over.
  undo.use(replace(Math, { random: () => 0.5 }));
  undo.use(replace(globalThis, {
    setTimeout(work: () => void, ms: number) {
      if (clock.waits.push(ms) > 99) throw new Error("it waits for ever");
      clock.time += ms;
      queueMicrotask(work);
    },
  }));
  const seen: Retry[] = [];
  const onRetry = (retry: Retry) => seen.push(retry);
  return {
    ...patience({ bytes: () => 0, onRetry, ...options }),
    clock,
    seen,
    [Symbol.dispose]: () => undo.dispose(),
  };
}

Deno.test("without a wish there are four attempts, with pauses that double", async () => {
  using it = timed();
  await it.ready();
  for (let count = 0; count < 3; count++) {
    it.failed(cut);
    await it.ready();
    await it.ready();
  }
  assertEquals(it.clock.waits, [1000, 2000, 4000]);
  assertEquals(
    it.seen.map(({ attempt, attempts, delayMs }) => [
      attempt,
      attempts,
      delayMs,
    ]),
    [[2, 4, 1000], [3, 4, 2000], [4, 4, 4000]],
  );
  assertEquals(it.seen[0].error, cut);
  assertThrows(() => it.failed(cut), ToolsmithError, "cut");
});

Deno.test("who asks for a longer pause during one gets it, for all connections", async () => {
  using it = timed({ retries: 1, retryDelayMs: 100 });
  it.failed(cut);
  it.clock.time += 40;
  it.failed(new BusyError(cut, 500));
  it.failed(new BusyError(cut, 10));
  await it.ready();
  assertEquals(it.clock.waits, [500]);
  // At its very end a failure is the next one.
  assertThrows(() => it.failed(cut), ToolsmithError, "cut");
});

Deno.test("five minutes are waited for if a server asks, and no millisecond more", async () => {
  using it = timed();
  it.failed(new BusyError(cut, 300_000));
  await it.ready();
  assertEquals(it.clock.waits, [300_000]);
  const late = new BusyError(cut, 300_001);
  assertThrows(() => it.failed(late), BusyError);
});

Deno.test("a transfer that was cancelled is not tried again, whatever has failed", () => {
  const signal = AbortSignal.abort(new Error("enough"));
  using it = timed({ signal });
  assertThrows(() => it.failed(cut), Error, "enough");
  assertEquals(it.seen, []);
});
