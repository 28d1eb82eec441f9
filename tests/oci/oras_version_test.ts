import { assertEquals } from "@std/assert";
import { isOlderVersion } from "../../lib/oci/oras_version.ts";

Deno.test("isOlderVersion() compares numerically and sorts a pre-release before its release", () => {
  const older: [string, string][] = [
    ["1.2.9", "1.3.0"],
    ["1.3.0", "1.3.3"],
    ["1.9.0", "1.10.0"],
    ["0.16.0", "1.3.0"],
    ["1.3.0-rc.1", "1.3.0"],
    ["1.3.2", "2.0.0"],
  ];
  for (const [a, b] of older) {
    assertEquals(
      [isOlderVersion(a, b), isOlderVersion(b, a)],
      [true, false],
      `${a} < ${b}`,
    );
  }
  for (const same of ["1.3.0", "v1.3.0", "1.3.0+unreleased"]) {
    assertEquals(isOlderVersion(same, "1.3.0"), false, same);
    assertEquals(isOlderVersion("1.3.0", same), false, same);
  }
  assertEquals(isOlderVersion("2.0.0-beta.1", "1.3.3"), false);
  assertEquals(isOlderVersion("1.3.0-rc.2", "1.3.0-rc.1"), false);
});

Deno.test("isOlderVersion() treats malformed version text as older than any version", () => {
  for (const text of ["", "1.3", "latest", "x1.3.0"]) {
    assertEquals(isOlderVersion(text, "1.3.0"), true, text);
  }
});
