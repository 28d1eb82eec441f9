import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  formatBytes,
  formatDuration,
  progressBar,
  shortDigest,
} from "../../lib/cli/format.ts";

const MIB = 1024 * 1024;
const DIGEST = `sha256:${"ab".repeat(32)}`;

Deno.test("formatBytes() chooses the unit by the size", () => {
  const sizes: [number, string][] = [
    [0, "0 B"],
    [1023, "1023 B"],
    [1023.95, "1.0 KiB"],
    [1024, "1.0 KiB"],
    [1536, "1.5 KiB"],
    [MIB - 1, "1.0 MiB"],
    [64 * MIB, "64.0 MiB"],
    [2 ** 40, "1.0 TiB"],
    [2 ** 52, "4096.0 TiB"],
  ];
  for (const [bytes, text] of sizes) assertEquals(formatBytes(bytes), text);
});

Deno.test("formatDuration() uses seconds, minutes or hours, and never prints 60 s", () => {
  const times: [number, string][] = [
    [0, "0.0 s"],
    [449, "0.4 s"],
    [9_050, "9.1 s"],
    [9_949, "9.9 s"],
    [9_950, "10 s"],
    [9_970, "10 s"],
    [59_400, "59 s"],
    [59_600, "1 min 0 s"],
    [119_700, "2 min 0 s"],
    [200_000, "3 min 20 s"],
    [3_599_600, "1 h 0 min"],
    [7_500_000, "2 h 5 min"],
  ];
  for (const [ms, text] of times) assertEquals(formatDuration(ms), text);
});

Deno.test("shortDigest() shortens a digest to twelve digits", () => {
  assertEquals(shortDigest(DIGEST), "sha256:abababababab");
  assertEquals(shortDigest("ab".repeat(32)), "abababababab");
});

Deno.test("progressBar() shows percentage, size, rate and time left", () => {
  const bar = progressBar({ bytes: 16 * MIB, total: 64 * MIB }, 4000, 100);
  assertEquals(
    bar,
    `[${"#".repeat(8)}${
      " ".repeat(22)
    }]  25%  16.0 MiB of 64.0 MiB  4.0 MiB/s  12 s left`,
  );
});

Deno.test("progressBar() omits a bar of fewer than five characters, and cuts text that is too long", () => {
  const words = " 50%  1.0 KiB of 2.0 KiB  1.0 KiB/s  1.0 s left";
  const bar = (columns: number) =>
    progressBar({ bytes: 1024, total: 2048 }, 1000, columns);
  assertEquals(bar(words.length + 9), `[###  ] ${words}`);
  assertEquals(bar(words.length + 8), words);
  assertEquals(bar(words.length - 1), words.slice(0, -1));
});

Deno.test("progressBar() stays plausible with no bytes, no elapsed time, or more bytes than the total", () => {
  const texts: [number, number | null, number, string][] = [
    [1000, 10_949, 1000, "  9%  1000 B of 10.7 KiB  1000 B/s  9.9 s left"],
    [995, 1000, 1000, " 99%  995 B of 1000 B  995 B/s  0.0 s left"],
    // More bytes than announced.
    [3, 1, 1000, "100%  3 B of 1 B  3 B/s  0.0 s left"],
    [1, 1, 1000, "100%  1 B of 1 B  1 B/s  0.0 s left"],
    [1, 3, 1000, " 33%  1 B of 3 B  1 B/s  2.0 s left"],
    [0, 3, 1000, "  0%  0 B of 3 B  0 B/s  ? left"],
    [1, 2, 1, " 50%  1 B of 2 B  1000 B/s  0.0 s left"],
    [1, 2, 0, " 50%  1 B of 2 B  1000 B/s  0.0 s left"],
    [1000, null, 1000, "1000 B  1000 B/s"],
    [0, 0, 1000, "0 B  0 B/s"],
  ];
  for (const [bytes, total, elapsedMs, words] of texts) {
    const bar = progressBar({ bytes, total }, elapsedMs, 80);
    assertEquals(bar.replace(/^\[.*\] /, ""), words);
  }
});

Deno.test("progressBar() leaves resumed bytes out of the rate", () => {
  const progress = { bytes: 48 * MIB, total: 64 * MIB, resumed: 32 * MIB };
  assertStringIncludes(
    progressBar(progress, 4000, 100),
    "75%  48.0 MiB of 64.0 MiB  4.0 MiB/s  4.0 s left",
  );
});

Deno.test("progressBar() is never longer than the given columns", () => {
  const cases = [
    { bytes: 0, total: 64 * MIB },
    { bytes: 64 * MIB, total: 64 * MIB },
    { bytes: 65 * MIB, total: 64 * MIB },
    { bytes: 7, total: null },
    { bytes: 0, total: 0 },
    { bytes: 2 ** 52, total: 2 ** 53 },
  ];
  for (const columns of [0, 1, 10, 40, 60, 80, 200]) {
    for (const elapsedMs of [0, 1, 100_000_000]) {
      for (const progress of cases) {
        const bar = progressBar(progress, elapsedMs, columns);
        assert(bar.length <= columns, bar);
        assert(!/NaN|Infinity|-\d/.test(bar), bar);
      }
    }
  }
});
