import { assertEquals } from "@std/assert";
import { closestMatch } from "../../lib/cli/usage_error.ts";

Deno.test("closestMatch() returns a close word or undefined", () => {
  const names = ["offline", "json", "ca-file", "cache"];
  assertEquals(closestMatch("ofline", names), "offline");
  assertEquals(closestMatch("JSON", names), undefined);
  assertEquals(closestMatch("cahce", names), "cache");
  assertEquals(closestMatch("x", names), undefined);
  assertEquals(closestMatch("", names), undefined);
  assertEquals(closestMatch("offline", []), undefined);
});

Deno.test("closestMatch() accepts one letter added, dropped, changed or swapped with the next", () => {
  for (const word of ["jsonx", "xjson", "jon", "jxon", "sjon", "josn"]) {
    assertEquals(closestMatch(word, ["json"]), "json", word);
  }
  for (const word of ["v", "vmx", "xm", "mv"]) {
    assertEquals(closestMatch(word, ["vm"]), "vm", word);
  }
});

Deno.test("closestMatch() accepts errors in up to a third of a longer word's letters", () => {
  for (const word of ["jsonxx", "jo", "jxxn", "jnos"]) {
    assertEquals(closestMatch(word, ["json"]), undefined, word);
  }
  for (const word of ["mmry", "mxmxry", "memoryxx", "emmoyr"]) {
    assertEquals(closestMatch(word, ["memory"]), "memory", word);
  }
  assertEquals(closestMatch("mry", ["memory"]), undefined);
  assertEquals(closestMatch("mxmxxy", ["memory"]), undefined);
});

Deno.test("closestMatch() prefers a word that starts with the input, unless the input is one letter", () => {
  assertEquals(closestMatch("ca", ["cat", "cache"]), "cat");
  assertEquals(closestMatch("off", ["of", "offline"]), "offline");
  assertEquals(closestMatch("o", ["offline"]), undefined);
  // The smallest edit distance wins, independent of the order.
  assertEquals(closestMatch("offlune", ["offrune", "offline"]), "offrune");
  assertEquals(closestMatch("ofliine", ["oftlime", "offline"]), "offline");
});
