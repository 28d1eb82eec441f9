import { assertEquals } from "@std/assert";
import fc from "fast-check";
import {
  foldNameCase,
  isPortableFileName,
} from "../../lib/system/portable_name.ts";

Deno.test("isPortableFileName() accepts only names that are valid and unambiguous on every system", () => {
  const good = [".a", "a", "a b", "a.b", "-a", "ä", "日本", "con1", "nulx.txt"];
  for (const name of [...good, "x".repeat(255)]) {
    assertEquals(isPortableFileName(name), true, name);
  }
  const bad = [
    "",
    ".",
    "..",
    "a/b",
    "a\\b",
    "a:b",
    "a.",
    "a ",
    "a\n",
    "a\u0085",
  ];
  const devices = ["con", "NUL.txt", "aux .x", "com1", "LPT\u00b3.a", "conin$"];
  const steering = ["a\u202eb", "a\u2028b", "a\ud800"];
  const long = "x".repeat(256);
  for (
    const name of [...bad, ...devices, ...steering, long, "a?", "a*", "<a"]
  ) {
    assertEquals(isPortableFileName(name), false, JSON.stringify(name));
  }
});

Deno.test("foldNameCase() returns equal text for names that differ only in case or Unicode normalization", () => {
  const same = [["A", "a"], ["ſ", "S"], ["\u212a", "k"], ["ä", "a\u0308"]];
  for (const [one, other] of same) {
    assertEquals(foldNameCase(one), foldNameCase(other));
  }
  fc.assert(fc.property(fc.string({ unit: "binary" }), (name) => {
    assertEquals(foldNameCase(foldNameCase(name)), foldNameCase(name));
  }));
});
