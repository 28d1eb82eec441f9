import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  ERROR_CODES,
  type ErrorCode,
  ToolsmithError,
} from "../../lib/errors.ts";
import {
  createRetryBudget,
  isTransientError,
  RetryAfterError,
  type RetryOptions,
  retryTransient,
  type ScheduledRetry,
} from "../../lib/system/retry.ts";
import { sleep } from "../../lib/system/time.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { replaceMethod } from "../support/replace_method.ts";

const cut = () => new ToolsmithError("transfer_interrupted", "cut");

Deno.test("retryTransient() retries until success, and reports each retry", async () => {
  const told: ScheduledRetry[] = [];
  let attempts = 0;
  const result = await retryTransient(async () => {
    attempts++;
    await Promise.resolve();
    if (attempts < 3) throw cut();
    return "done";
  }, { retryDelayMs: 1, onRetry: (event) => told.push(event) });
  assertEquals(result, "done");
  assertEquals(attempts, 3);
  assertEquals(
    told.map(({ error, attempt, attempts }) => [error.code, attempt, attempts]),
    [["transfer_interrupted", 2, 4], ["transfer_interrupted", 3, 4]],
  );
});

Deno.test("retryTransient() throws the last error after its retries", async () => {
  for (const retries of [0, 1, 2]) {
    let attempts = 0;
    const error = await expectFailure(
      "transfer_interrupted",
      () =>
        retryTransient(() => {
          attempts++;
          return Promise.reject(
            new ToolsmithError("transfer_interrupted", `cut ${attempts}`),
          );
        }, { retries, retryDelayMs: 1 }),
    );
    assertEquals(attempts, retries + 1);
    assertEquals(error.message, `cut ${attempts}`);
  }
});

Deno.test("retryTransient() does not retry a permanent error", async () => {
  for (const thrown of [new Error("x"), new ToolsmithError("not_found", "x")]) {
    let attempts = 0;
    await assertRejects(() =>
      retryTransient(() => {
        attempts++;
        return Promise.reject(thrown);
      }, { retryDelayMs: 1 })
    );
    assertEquals(attempts, 1);
  }
});

Deno.test("isTransientError() accepts only rate limits, server errors and failed transfers", () => {
  const codes = (Object.keys(ERROR_CODES) as ErrorCode[]).filter((code) =>
    isTransientError(new ToolsmithError(code, "x"))
  );
  assertEquals(codes.sort(), [
    "connection_failed",
    "rate_limited",
    "registry_unavailable",
    "transfer_interrupted",
    "transfer_stalled",
  ]);
});

Deno.test("retryTransient() stops its backoff on abort", async () => {
  const abort = new AbortController();
  await assertRejects(
    () =>
      retryTransient(() => Promise.reject(cut()), {
        retryDelayMs: 600_000,
        signal: abort.signal,
        onRetry: () => queueMicrotask(() => abort.abort(new Error("enough"))),
      }),
    Error,
    "enough",
  );
});

const MIB = 1024 * 1024;
function makeBudget(retries: number) {
  const seen: ScheduledRetry[] = [];
  const state = { bytes: 0 };
  const { waitForBackoff, recordFailure } = createRetryBudget({
    ...{ retries, retryDelayMs: 20 },
    onRetry: (retry) => seen.push(retry),
  }, () => state.bytes);
  return { waitForBackoff, recordFailure, seen, state };
}

Deno.test("RetryBudget counts simultaneous failures of several connections as one", async () => {
  using it = budgetWithFakeClock({ retries: 1 });
  for (let count = 0; count < 4; count++) it.recordFailure(cut());
  assertEquals(it.seen.map(({ attempt }) => attempt), [2]);
  await it.waitForBackoff();
  assertThrows(() => it.recordFailure(cut()), ToolsmithError, "cut");
});

Deno.test("RetryBudget restores its retries after 1 MiB of progress", async () => {
  const { waitForBackoff, recordFailure, seen, state } = makeBudget(1);
  for (let count = 0; count < 5; count++) {
    recordFailure(cut());
    await waitForBackoff();
    state.bytes += MIB;
  }
  assertEquals(seen.map(({ attempt }) => attempt), [2, 2, 2, 2, 2]);
  recordFailure(cut());
  await waitForBackoff();
  state.bytes += MIB - 1;
  assertThrows(() => recordFailure(cut()), ToolsmithError);
});

Deno.test("RetryBudget waits as long as Retry-After says, up to five minutes", () => {
  const { recordFailure, seen } = makeBudget(9);
  recordFailure(new RetryAfterError(cut(), 60_000));
  assert(seen[0].delayMs >= 60_000);
  const late = new RetryAfterError(cut(), 301_000);
  assertThrows(() => makeBudget(9).recordFailure(late), RetryAfterError);
});

Deno.test("RetryBudget rethrows a permanent error at once", () => {
  const { recordFailure, seen } = makeBudget(9);
  const error = new ToolsmithError("disk_full", "full");
  assertThrows(() => recordFailure(error), ToolsmithError, "full");
  assertEquals(seen, []);
});

/** A retry budget with a fake clock: waits pass at once. */
function budgetWithFakeClock(options: RetryOptions = {}) {
  const clock = { time: 1000, waits: [] as number[] };
  const undo = new DisposableStack();
  undo.use(replaceMethod(performance, { now: () => clock.time }));
  // No jitter.
  undo.use(replaceMethod(Math, { random: () => 0.5 }));
  undo.use(replaceMethod(globalThis, {
    setTimeout(work: () => void, ms: number) {
      if (clock.waits.push(ms) > 99) throw new Error("endless wait");
      clock.time += ms;
      queueMicrotask(work);
    },
  }));
  const seen: ScheduledRetry[] = [];
  const onRetry = (retry: ScheduledRetry) => seen.push(retry);
  return {
    ...createRetryBudget({ onRetry, ...options }),
    clock,
    seen,
    [Symbol.dispose]: () => undo.dispose(),
  };
}

Deno.test("RetryBudget allows four attempts with doubling backoff by default", async () => {
  using it = budgetWithFakeClock();
  await it.waitForBackoff();
  for (let count = 0; count < 3; count++) {
    it.recordFailure(cut());
    await it.waitForBackoff();
    await it.waitForBackoff();
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
  assertEquals(it.seen[0].error.message, "cut");
  assertThrows(() => it.recordFailure(cut()), ToolsmithError, "cut");
});

Deno.test("RetryBudget extends a running backoff to a longer Retry-After, for all connections", async () => {
  using it = budgetWithFakeClock({ retries: 1, retryDelayMs: 100 });
  it.recordFailure(cut());
  it.clock.time += 40;
  it.recordFailure(new RetryAfterError(cut(), 500));
  it.recordFailure(new RetryAfterError(cut(), 10));
  await it.waitForBackoff();
  assertEquals(it.clock.waits, [500]);
  // After the backoff, a failure uses the next retry.
  assertThrows(() => it.recordFailure(cut()), ToolsmithError, "cut");
});

Deno.test("RetryBudget accepts a Retry-After of exactly five minutes, and rejects a longer one", async () => {
  using it = budgetWithFakeClock();
  it.recordFailure(new RetryAfterError(cut(), 300_000));
  await it.waitForBackoff();
  assertEquals(it.clock.waits, [300_000]);
  const late = new RetryAfterError(cut(), 300_001);
  assertThrows(() => it.recordFailure(late), RetryAfterError);
});

Deno.test("RetryBudget.recordFailure() throws the abort reason after an abort, whatever failed", () => {
  const signal = AbortSignal.abort(new Error("enough"));
  using it = budgetWithFakeClock({ signal });
  assertThrows(() => it.recordFailure(cut()), Error, "enough");
  assertEquals(it.seen, []);
});

Deno.test("RetryBudget backs off from 1 s up to 30 s, with 25 % jitter", () => {
  const { random } = Math;
  const pauses = (retries: number, retryDelayMs?: number) =>
    [0, 0.5, 1].map((number) => {
      using it = budgetWithFakeClock({ retries, retryDelayMs });
      Math.random = () => number;
      for (let nth = 1; nth <= retries; nth++) {
        it.recordFailure(cut());
        it.clock.time += 60_000;
      }
      Math.random = random;
      return it.seen.at(-1)!.delayMs;
    });
  assertEquals(pauses(1), [750, 1000, 1250]);
  assertEquals(pauses(2, 100), [150, 200, 250]);
  assertEquals(pauses(6), [22_500, 30_000, 37_500]);
});

Deno.test("sleep() rejects at once when its signal is already aborted", async () => {
  const signal = AbortSignal.abort(new Error("enough"));
  await assertRejects(() => sleep(600_000, signal), Error, "enough");
  await sleep(1, new AbortController().signal);
});
