import { assert, assertEquals } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import { httpStatusError } from "../../lib/system/http_errors.ts";
import { parseRetryAfterMs, RetryAfterError } from "../../lib/system/retry.ts";

Deno.test("parseRetryAfterMs() parses seconds, dates and Unix times", () => {
  const now = Date.parse("Wed, 21 Oct 2026 07:28:00 GMT");
  const pauses: [string | null, number][] = [
    [null, 0],
    ["", 0],
    ["0", 0],
    ["2", 2000],
    [" 1.5 ", 1500],
    ["3600", 3_600_000],
    ["-5", 0],
    ["Wed, 21 Oct 2026 07:28:05 GMT", 5000],
    ["Wed, 21 Oct 2026 07:27:00 GMT", 0],
    [`${now / 1000 + 60}`, 60_000],
    [`${now / 1000 - 60}`, 0],
    ["soon", 0],
  ];
  for (const [text, ms] of pauses) {
    assertEquals(parseRetryAfterMs(text, now), ms, `${text}`);
  }
});

Deno.test("parseRetryAfterMs() measures a date from the current time", () => {
  const date = new Date(Date.now() + 600_000).toUTCString();
  const ms = parseRetryAfterMs(date);
  assert(ms > 500_000 && ms <= 600_000, `${ms}`);
});

Deno.test("RetryAfterError shows the server's Retry-After time in its message and hint", () => {
  const busy = new ToolsmithError("rate_limited", "Cannot: it answered 429");
  const pauses: [number, string][] = [
    [1, "1 s"],
    [59_001, "60 s"],
    [99_000, "99 s"],
    [100_000, "2 min"],
    [3_600_000, "60 min"],
    [86_400_000, "24 h"],
  ];
  for (const [ms, pause] of pauses) {
    const { code, message, hint } = new RetryAfterError(busy, ms);
    assertEquals(code, "rate_limited");
    assertEquals(message, `Cannot: it answered 429 and asks to wait ${pause}`);
    assertEquals(hint, `try again in ${pause}`);
  }
});

Deno.test("httpStatusError() reads Retry-After for transient statuses only", () => {
  const headers = { "retry-after": "60" };
  const pause = (status: number) => {
    const error = httpStatusError(new Response(null, { status, headers }), "x");
    return error instanceof RetryAfterError ? error.retryAfterMs : 0;
  };
  const statuses = [408, 429, 500, 503, 400, 401, 403, 404];
  assertEquals(statuses.map(pause), [...Array(4).fill(60_000), 0, 0, 0, 0]);
});
