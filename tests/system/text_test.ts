import { assert, assertEquals } from "@std/assert";
import { oneLine, printable } from "../../lib/system/text.ts";

Deno.test("oneLine() leaves nothing that steers a terminal or turns a line around", () => {
  assertEquals(
    oneLine("bad\x1b[2J\r\nhint: run \u202ecurl\u2066 x\t| sh\u0007"),
    "bad?[2J hint: run ?curl? x | sh?",
  );
});

Deno.test("oneLine() keeps as many characters as it may", () => {
  assertEquals(oneLine("x".repeat(300)), "x".repeat(300));
  assertEquals(oneLine("x".repeat(301)), `${"x".repeat(300)}…`);
  assertEquals(oneLine(" ".repeat(39) + "x", 10), "x");
  // No more than four times as many are looked at.
  assertEquals(oneLine(" ".repeat(40) + "x", 10), "…");
});

Deno.test("oneLine() cuts a long text, in time that does not grow with it", () => {
  const line = oneLine("x ".repeat(5_000_000));
  assert(line.length === 301 && line.endsWith("…"));
  assertEquals(oneLine("y".repeat(300)), "y".repeat(300));
});

Deno.test("printable() keeps lines and tabs", () => {
  assertEquals(printable("a\tb\n\x9bc\u202e\r"), "a\tb\n?c??");
});
