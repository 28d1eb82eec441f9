import { assert, assertEquals, assertMatch } from "@std/assert";
import { jsonFields, show } from "../../lib/manifest/_json_fields.ts";
import { failure } from "../support/failure.ts";

const json = jsonFields("/work/tools.json", "see the guide");

/** What is said of a failure: its message, without the file, and its hint. */
async function said(work: () => unknown): Promise<[string, string?]> {
  const { message, hint } = await failure("manifest_invalid", work);
  assert(message.startsWith("/work/tools.json:"), message);
  return [message.slice("/work/tools.json:".length).trim(), hint];
}

Deno.test("64 levels are read, one more is refused", async () => {
  const nested = (depth: number) => "[".repeat(depth) + "]".repeat(depth);
  json.parse(nested(64));
  assertEquals(await said(() => json.parse(nested(65))), [
    "it is nested too deeply",
    "see the guide",
  ]);
});

Deno.test("bad syntax is reported where it stands, by line and column, in one line", async () => {
  const cases: [string, string][] = [
    ["", "1:1"],
    ['{"a": 1,}', "1:9"],
    ["{\n  'a': 1}", "2:3"],
    ['{"a": tru}', "1:10"],
    ['{"a": tru\n}', "1:10"],
    ["[1, 2,\n\n oops]", "3:2"],
    ['{"a": 1', "1:8"],
    ["// no\n{}", "1:1"],
    // What stands before the text itself does not count.
    ["\uFEFF[oops]", "1:2"],
  ];
  for (const [text, place] of cases) {
    const [message, hint] = await said(() => json.parse(text));
    // The engine's own words, without its place and the text.
    assertMatch(message, new RegExp(`^${place}: not JSON: [A-Z][^"\\n]+$`));
    assert(!/ (?:in|after) JSON| position /.test(message), message);
    assertEquals(hint, "fix the syntax there; JSON has no comments");
  }
  assertEquals(json.parse("\uFEFF[7]"), [7]);
});

Deno.test("a key that stands twice is refused by its place, but for other programs'", async () => {
  const cases: [string, string][] = [
    ['{"a":1,"a":2}', "a"],
    ['{"b":{"c":{"a":1,"a":2}}}', "b.c.a"],
    ['{"b":[{"a":1,"a":2}]}', "b.a"],
    ['{"x-a":1,"x-a":2}', "x-a"],
  ];
  for (const [text, field] of cases) {
    assertEquals(await said(() => json.parse(text)), [
      `${field}: stands there twice`,
      "remove one of the two",
    ]);
  }
  json.parse('{"x-other":{"a":1,"a":2},"b":[{"a":1},{"a":1}]}');
});

Deno.test("a field is demanded by its name, its kind, and what it is for", async () => {
  const object = { name: " x ", empty: " ", number: 5, list: [] };
  assertEquals(json.required(object, "image.name", "how"), " x ");
  assertEquals(json.optional(object, "image.name"), "x");
  assertEquals(json.optional(object, "image.empty"), undefined);
  assertEquals(json.optional(object, "image.gone"), undefined);
  const cases: [() => unknown, string, string][] = [
    [
      () => json.required(object, "image.gone", "how"),
      "image.gone: missing",
      "how",
    ],
    [
      () => json.required(object, "image.empty", "how"),
      "image.empty: empty",
      "how",
    ],
    [
      () => json.required(object, "number", "how"),
      "number: 5 is not a string",
      'put it in ""',
    ],
    [
      () => json.optional(object, "list"),
      "list: [] is not a string",
      'put it in ""',
    ],
    [
      () => json.object([], "image"),
      "image: [] is not an object",
      "see the guide",
    ],
    [() => json.object(null, ""), "null is not an object", "see the guide"],
    [
      () => json.object(undefined, "a"),
      "a: undefined is not an object",
      "see the guide",
    ],
    [
      () => json.onlyKnown({ a: 1, "x-b": 2, c: 3 }, ["a", "b"]),
      "c: no such field",
      "the fields are a, b",
    ],
    [
      () => json.onlyKnown({ c: 3 }, ["a", "b"], "image."),
      "image.c: no such field",
      "the fields are image.a, image.b",
    ],
  ];
  for (const [work, message, hint] of cases) {
    assertEquals(await said(work), [message, hint]);
  }
  json.onlyKnown({ a: 1, "x-b": 2 }, ["a", "b"], "image.");
});

Deno.test("what a message shows of a file has an end", async () => {
  assertEquals(show("y".repeat(58)), `"${"y".repeat(58)}"`);
  assertEquals(show("y".repeat(59)), `"${"y".repeat(56)}…`);
  const [long] = await said(() => json.object(1, "f".repeat(500)));
  assertEquals(long.split(":")[0], `${"f".repeat(120)}…`);
});
