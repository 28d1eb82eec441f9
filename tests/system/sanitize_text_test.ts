import { assert, assertEquals } from "@std/assert";
import { sanitizeLine, sanitizeText } from "../../lib/system/sanitize_text.ts";

Deno.test("sanitizeLine() removes control characters and text direction marks", () => {
  assertEquals(
    sanitizeLine("bad\x1b[2J\r\nhint: run \u202ecurl\u2066 x\t| sh\u0007"),
    "bad?[2J hint: run ?curl? x | sh?",
  );
});

Deno.test("sanitizeLine() keeps up to the maximum of characters", () => {
  assertEquals(sanitizeLine("x".repeat(300)), "x".repeat(300));
  assertEquals(sanitizeLine("x".repeat(301)), `${"x".repeat(300)}…`);
  assertEquals(sanitizeLine(" ".repeat(39) + "x", 10), "x");
  // Only the first 4 × max characters are read.
  assertEquals(sanitizeLine(" ".repeat(40) + "x", 10), "…");
});

Deno.test("sanitizeLine() truncates a very long text in bounded time", () => {
  const line = sanitizeLine("x ".repeat(5_000_000));
  assert(line.length === 301 && line.endsWith("…"));
  assertEquals(sanitizeLine("y".repeat(300)), "y".repeat(300));
});

Deno.test("sanitizeText() keeps line ends and tabs", () => {
  assertEquals(sanitizeText("a\tb\n\x9bc\u202e\r"), "a\tb\n?c??");
});
