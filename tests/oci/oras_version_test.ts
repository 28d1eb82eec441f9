import { assertEquals } from "@std/assert";
import { isOlder } from "../../lib/oci/oras_version.ts";

Deno.test("versions are compared by number, and a pre-release comes before its release", () => {
  const older: [string, string][] = [
    ["1.2.9", "1.3.0"],
    ["1.3.0", "1.3.3"],
    ["1.9.0", "1.10.0"],
    ["0.16.0", "1.3.0"],
    ["1.3.0-rc.1", "1.3.0"],
    ["1.3.2", "2.0.0"],
  ];
  for (const [a, b] of older) {
    assertEquals([isOlder(a, b), isOlder(b, a)], [true, false], `${a} < ${b}`);
  }
  for (const same of ["1.3.0", "v1.3.0", "1.3.0+unreleased"]) {
    assertEquals(isOlder(same, "1.3.0"), false, same);
    assertEquals(isOlder("1.3.0", same), false, same);
  }
  assertEquals(isOlder("2.0.0-beta.1", "1.3.3"), false);
  assertEquals(isOlder("1.3.0-rc.2", "1.3.0-rc.1"), false);
});

Deno.test("what is no version is older than any", () => {
  for (const text of ["", "1.3", "latest", "x1.3.0"]) {
    assertEquals(isOlder(text, "1.3.0"), true, text);
  }
});
