import { assertEquals } from "@std/assert";
import { isNestedDeeper, walkJsonMembers } from "../../lib/system/json.ts";

Deno.test("isNestedDeeper() compares the deepest nesting level, ignoring brackets inside strings", () => {
  const cases: [string, number][] = [
    ["7", 0],
    ['"[[[["', 0],
    ['"\\"[["', 0],
    ["[]", 1],
    ["{}", 1],
    ["[[],[[]],[]]", 3],
    ["[[[]],[[]],[[]]]", 3],
    ['{"a":[{}],"b":[[{}]],"c":{}}', 4],
    ['{"{{{":{}}', 2],
    ['[{"a":1},{"a":1},{"a":1}]', 2],
  ];
  for (const [text, depth] of cases) {
    const value = JSON.parse(text);
    const deeper = [depth - 1, depth].map((it) => isNestedDeeper(value, it));
    assertEquals(deeper, [depth > 0, false], text);
  }
});

Deno.test("walkJsonMembers() reports each member's parents and position, and whether its key is a duplicate", () => {
  const text = `{"a": 1, "b" : {"a":"x:y", "c":[1, {"d":true}, "e"], "a": null},
    "\\u0061":[], "f": {}}`;
  JSON.parse(text);
  const found = Array.from(walkJsonMembers(text), (member) => {
    const [value] = /^(?:"[^"]*"|\w+|.)/.exec(text.slice(member.valueOffset))!;
    return [...member.parentKeys, member.key, value, member.isDuplicateKey];
  });
  assertEquals(found.map((it) => it.join(" ")), [
    " a 1 false",
    " b { false",
    ' b a "x:y" false',
    " b c [ false",
    // An array element has no key.
    " b c  d true false",
    " b a null true",
    " a [ true",
    " f { false",
  ]);
});
