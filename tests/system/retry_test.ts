import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  ERROR_CODES,
  type ErrorCode,
  ToolsmithError,
} from "../../lib/errors.ts";
import {
  backoffMs,
  isTransient,
  type Retry,
  retry,
} from "../../lib/system/retry.ts";
import { sleep } from "../../lib/system/time.ts";
import { failure } from "../support/failure.ts";

const cut = () => new ToolsmithError("transfer_interrupted", "cut");

Deno.test("what passes is tried again until it succeeds, and that is told", async () => {
  const told: Retry[] = [];
  const attempts: number[] = [];
  const result = await retry(async (attempt) => {
    attempts.push(attempt);
    await Promise.resolve();
    if (attempt < 3) throw cut();
    return "done";
  }, { retryDelayMs: 1, onRetry: (event) => told.push(event) });
  assertEquals(result, "done");
  assertEquals(attempts, [1, 2, 3]);
  assertEquals(
    told.map(({ error, attempt, attempts }) => [error.code, attempt, attempts]),
    [["transfer_interrupted", 2, 4], ["transfer_interrupted", 3, 4]],
  );
});

Deno.test("it is given up after so many retries, with the last failure", async () => {
  for (const retries of [0, 1, 2]) {
    let attempts = 0;
    const error = await failure("transfer_interrupted", () =>
      retry(() => {
        attempts++;
        return Promise.reject(
          new ToolsmithError("transfer_interrupted", `cut ${attempts}`),
        );
      }, { retries, retryDelayMs: 1 }));
    assertEquals(attempts, retries + 1);
    assertEquals(error.message, `cut ${attempts}`);
  }
});

Deno.test("what does not pass by itself is tried once", async () => {
  for (const thrown of [new Error("x"), new ToolsmithError("not_found", "x")]) {
    let attempts = 0;
    await assertRejects(() =>
      retry(() => {
        attempts++;
        return Promise.reject(thrown);
      }, { retryDelayMs: 1 })
    );
    assertEquals(attempts, 1);
  }
});

Deno.test("only rate limits, server errors and failed transfers may pass", () => {
  const codes = (Object.keys(ERROR_CODES) as ErrorCode[]).filter((code) =>
    isTransient(new ToolsmithError(code, "x"))
  );
  assertEquals(codes.sort(), [
    "connection_failed",
    "rate_limited",
    "registry_unavailable",
    "transfer_interrupted",
    "transfer_stalled",
  ]);
});

Deno.test("an abort ends the pause", async () => {
  const abort = new AbortController();
  await assertRejects(
    () =>
      retry(() => Promise.reject(cut()), {
        retryDelayMs: 600_000,
        signal: abort.signal,
        onRetry: () => queueMicrotask(() => abort.abort(new Error("enough"))),
      }),
    Error,
    "enough",
  );
});

Deno.test("pauses double, are spread, and end at half a minute", () => {
  for (let attempt = 1; attempt < 2000; attempt += attempt) {
    const whole = Math.min(100 * 2 ** (attempt - 1), 30_000);
    for (let i = 0; i < 50; i++) {
      const pause = backoffMs(attempt, 100);
      assert(pause >= whole * 0.74 && pause <= whole * 1.26, `${pause}`);
    }
  }
});

Deno.test("a pause is a second at first and half a minute at most, a quarter more or less", () => {
  const { random } = Math;
  const pauses = (attempt: number, firstMs?: number) =>
    [0, 0.5, 1].map((number) => {
      Math.random = () => number;
      return backoffMs(attempt, firstMs);
    });
  try {
    assertEquals(pauses(1), [750, 1000, 1250]);
    assertEquals(pauses(2, 100), [150, 200, 250]);
    assertEquals(pauses(6), [22_500, 30_000, 37_500]);
  } finally {
    Math.random = random;
  }
});

Deno.test("sleep rejects at once where the abort came before", async () => {
  const signal = AbortSignal.abort(new Error("enough"));
  await assertRejects(() => sleep(600_000, signal), Error, "enough");
  await sleep(1, new AbortController().signal);
});
