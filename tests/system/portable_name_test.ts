import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { foldName, isPortableName } from "../../lib/system/portable_name.ts";

Deno.test("a name is portable if every system can have it, under that name alone", () => {
  const good = [".a", "a", "a b", "a.b", "-a", "ä", "日本", "con1", "nulx.txt"];
  for (const name of [...good, "x".repeat(255)]) {
    assertEquals(isPortableName(name), true, name);
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
    assertEquals(isPortableName(name), false, JSON.stringify(name));
  }
});

Deno.test("names that differ in case or accents alone are folded to one", () => {
  const same = [["A", "a"], ["ſ", "S"], ["\u212a", "k"], ["ä", "a\u0308"]];
  for (const [one, other] of same) assertEquals(foldName(one), foldName(other));
  fc.assert(fc.property(fc.string({ unit: "binary" }), (name) => {
    assertEquals(foldName(foldName(name)), foldName(name));
  }));
});
