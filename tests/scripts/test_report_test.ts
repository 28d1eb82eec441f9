import { assertEquals } from "@std/assert";
import {
  countLine,
  countTests,
  type FileReport,
  parseJunit,
  skipLines,
  slowestLines,
} from "../../scripts/test/report.ts";

const FILE = { file: "a_test.ts", seconds: 1, missing: [] };
const REPORT = { ...FILE, ok: true, log: "" };

/** A report of skipped tests. */
function skipping(
  file: string,
  missing: string[],
  ...names: string[]
): FileReport {
  const tests = names.map((name) => (
    { name, seconds: 0, outcome: "skipped" } as const
  ));
  return { ...REPORT, file, missing, tests };
}

Deno.test("parseJunit() reads each test's outcome and skips steps", () => {
  const at = (name: string, body = "") =>
    `<testcase name="${name}" classname="./a_test.ts" time="1.5" line="1" col="2">
      ${body}</testcase>`;
  const tests = parseJunit(
    `<testsuites><testsuite name="./a_test.ts">` +
      at("a &lt;b&gt; &amp; &quot;c&quot;") +
      at("left out", "<skipped/>") +
      at("a > b is false", `<failure message="no&#10;">no</failure>`) +
      at("a &lt;b&gt; &amp; &quot;c&quot; &gt; one") +
      at("a &lt;b&gt; &amp; &quot;c&quot; &gt; one &gt; two", "<skipped/>") +
      `</testsuite></testsuites>`,
  );
  assertEquals(tests, [
    { name: `a <b> & "c"`, seconds: 1.5, outcome: "passed" },
    { name: "left out", seconds: 1.5, outcome: "skipped" },
    { name: "a > b is false", seconds: 1.5, outcome: "failed" },
  ]);
  assertEquals(parseJunit(""), []);
});

Deno.test("countTests() counts a file that fails without a failed test as one failure", () => {
  const counts = countTests([
    skipping("a_test.ts", [], "one", "two"),
    { ...REPORT, ok: false, tests: [] },
    { ...REPORT, tests: [{ name: "x", seconds: 1, outcome: "passed" }] },
  ]);
  assertEquals(countLine(counts), "1 passed, 1 failed, 2 skipped");
});

Deno.test("skipLines() prints each reason once and names tests that need root", () => {
  const lines = skipLines([
    skipping("a_test.ts", ["qemu", "guest"], "boots", "saves"),
    skipping("b_test.ts", ["guest", "qemu", "root"], "restores"),
    skipping("c_test.ts", ["root"], "mounts"),
    skipping("d_test.ts", [], "runs on Windows"),
    { ...REPORT, missing: ["zsh"], tests: [] },
  ], (part) => `install ${part}`);
  assertEquals(lines, [
    "skipped 1: need root",
    "  c_test.ts: mounts",
    "skipped 1: not for this system or user",
    "  d_test.ts: runs on Windows",
    "skipped 3: without guest, qemu",
    "guest is missing: install guest",
    "qemu is missing: install qemu",
  ]);
});

Deno.test("slowestLines() names the slowest tests of all files", () => {
  const of = (file: string, ...seconds: number[]): FileReport => ({
    ...REPORT,
    file,
    tests: seconds.map((seconds) => ({
      name: `takes ${seconds}`,
      seconds,
      outcome: "passed",
    })),
  });
  assertEquals(slowestLines([of("a", 1, 30), of("b", 2.25)], 2), [
    "  30.0 s  a: takes 30",
    "   2.3 s  b: takes 2.25",
  ]);
});
