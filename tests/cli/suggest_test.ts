import { assertEquals } from "@std/assert";
import { closest } from "../../lib/cli/suggest.ts";

Deno.test("a suggestion is close, or there is none", () => {
  const names = ["offline", "json", "ca-file", "cache"];
  assertEquals(closest("ofline", names), "offline");
  assertEquals(closest("JSON", names), undefined);
  assertEquals(closest("cahce", names), "cache");
  assertEquals(closest("x", names), undefined);
  assertEquals(closest("", names), undefined);
  assertEquals(closest("offline", []), undefined);
});

Deno.test("one letter added, dropped, changed, or swapped with the next, is close to a word of any length", () => {
  for (const word of ["jsonx", "xjson", "jon", "jxon", "sjon", "josn"]) {
    assertEquals(closest(word, ["json"]), "json", word);
  }
  for (const word of ["v", "vmx", "xm", "mv"]) {
    assertEquals(closest(word, ["vm"]), "vm", word);
  }
});

Deno.test("of a longer word a third of the letters may be wrong, and no more", () => {
  for (const word of ["jsonxx", "jo", "jxxn", "jnos"]) {
    assertEquals(closest(word, ["json"]), undefined, word);
  }
  for (const word of ["mmry", "mxmxry", "memoryxx", "emmoyr"]) {
    assertEquals(closest(word, ["memory"]), "memory", word);
  }
  assertEquals(closest("mry", ["memory"]), undefined);
  assertEquals(closest("mxmxxy", ["memory"]), undefined);
});

Deno.test("what begins a word is closer than any misspelling, unless it is a single letter", () => {
  assertEquals(closest("ca", ["cat", "cache"]), "cat");
  assertEquals(closest("off", ["of", "offline"]), "offline");
  assertEquals(closest("o", ["offline"]), undefined);
  // The fewest changes come first, wherever they stand in the table.
  assertEquals(closest("offlune", ["offrune", "offline"]), "offrune");
  assertEquals(closest("ofliine", ["oftlime", "offline"]), "offline");
});
