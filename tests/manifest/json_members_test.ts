import { assertEquals } from "@std/assert";
import { jsonDepth, jsonMembers } from "../../lib/manifest/_json_members.ts";

Deno.test("the depth of a text is that of its deepest value, whatever strings hold", () => {
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
    JSON.parse(text);
    assertEquals(jsonDepth(text), depth, text);
  }
});

Deno.test("each member is told with where it stands, and whether its key did before", () => {
  const text = `{"a": 1, "b" : {"a":"x:y", "c":[1, {"d":true}, "e"], "a": null},
    "\\u0061":[], "f": {}}`;
  JSON.parse(text);
  const found = Array.from(jsonMembers(text), (member) => {
    assertEquals(text.slice(member.from).startsWith(member.value), true);
    return [...member.around, member.key, member.value, member.isRepeated];
  });
  assertEquals(found.map((it) => it.join(" ")), [
    " a 1 false",
    " b { false",
    ' b a "x:y" false',
    " b c [ false",
    // What lies in a list has no key of its own there.
    " b c  d true false",
    " b a null true",
    " a [ true",
    " f { false",
  ]);
});
