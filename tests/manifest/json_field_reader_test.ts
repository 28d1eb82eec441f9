import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  createJsonFieldReader,
  toShortJson,
} from "../../lib/manifest/_json_field_reader.ts";
import { expectFailure } from "../support/expect_failure.ts";

const json = createJsonFieldReader("/work/tools.json", "see the guide");

/** Returns message and hint of a failure, without the file. */
async function said(work: () => unknown): Promise<[string, string?]> {
  const { message, hint } = await expectFailure("manifest_invalid", work);
  assert(message.startsWith("/work/tools.json:"), message);
  return [message.slice("/work/tools.json:".length).trim(), hint];
}

Deno.test("JsonFieldReader.parse() accepts 64 nesting levels and rejects 65", async () => {
  const nested = (depth: number) => "[".repeat(depth) + "]".repeat(depth);
  json.parse(nested(64));
  assertEquals(await said(() => json.parse(nested(65))), [
    "JSON is nested too deeply",
    "see the guide",
  ]);
});

Deno.test("JsonFieldReader.parse() reports a syntax error on one line, with line and column", async () => {
  const cases: [string, string][] = [
    ["", "1:1"],
    ['{"a": 1,}', "1:9"],
    ["{\n  'a': 1}", "2:3"],
    ['{"a": tru}', "1:10"],
    ['{"a": tru\n}', "1:10"],
    ["[1, 2,\n\n oops]", "3:2"],
    ['{"a": 1', "1:8"],
    ["// no\n{}", "1:1"],
    // A byte order mark does not count as a column.
    ["\uFEFF[oops]", "1:2"],
  ];
  for (const [text, place] of cases) {
    const [message, hint] = await said(() => json.parse(text));
    // V8's message, without its position and the text.
    assertMatch(message, new RegExp(`^${place}: not JSON: [A-Z][^"\\n]+$`));
    assert(!/ (?:in|after) JSON| position /.test(message), message);
    assertEquals(
      hint,
      "fix the JSON syntax at this position; comments are not allowed",
    );
  }
  assertEquals(json.parse("\uFEFF[7]"), [7]);
});

Deno.test("JsonFieldReader.parse() rejects a duplicate key and names its path, but allows duplicates inside x- fields", async () => {
  const cases: [string, string][] = [
    ['{"a":1,"a":2}', "a"],
    ['{"b":{"c":{"a":1,"a":2}}}', "b.c.a"],
    ['{"b":[{"a":1,"a":2}]}', "b.a"],
    ['{"x-a":1,"x-a":2}', "x-a"],
  ];
  for (const [text, field] of cases) {
    assertEquals(await said(() => json.parse(text)), [
      `${field}: duplicate key`,
      "remove one of the duplicate keys",
    ]);
  }
  json.parse('{"x-other":{"a":1,"a":2},"b":[{"a":1},{"a":1}]}');
});

Deno.test("JsonFieldReader names the field, its expected type and a hint when a value is wrong", async () => {
  const object = { name: " x ", empty: " ", number: 5, list: [] };
  assertEquals(json.requiredText(object, "image.name", "how"), " x ");
  assertEquals(json.optionalText(object, "image.name"), "x");
  assertEquals(json.optionalText(object, "image.empty"), undefined);
  assertEquals(json.optionalText(object, "image.gone"), undefined);
  const cases: [() => unknown, string, string][] = [
    [
      () => json.requiredText(object, "image.gone", "how"),
      "image.gone: missing",
      "how",
    ],
    [
      () => json.requiredText(object, "image.empty", "how"),
      "image.empty: empty",
      "how",
    ],
    [
      () => json.requiredText(object, "number", "how"),
      "number: 5 is not a string",
      "write the value as a string in double quotes",
    ],
    [
      () => json.optionalText(object, "list"),
      "list: [] is not a string",
      "write the value as a string in double quotes",
    ],
    [
      () => json.requireObject([], "image"),
      "image: [] is not an object",
      "see the guide",
    ],
    [
      () => json.requireObject(null, ""),
      "null is not an object",
      "see the guide",
    ],
    [
      () => json.requireObject(undefined, "a"),
      "a: undefined is not an object",
      "see the guide",
    ],
    [
      () => json.rejectUnknownFields({ a: 1, "x-b": 2, c: 3 }, ["a", "b"]),
      "c: unknown field",
      "use one of these fields: a, b",
    ],
    [
      () => json.rejectUnknownFields({ c: 3 }, ["a", "b"], "image."),
      "image.c: unknown field",
      "use one of these fields: image.a, image.b",
    ],
  ];
  for (const [work, message, hint] of cases) {
    assertEquals(await said(work), [message, hint]);
  }
  json.rejectUnknownFields({ a: 1, "x-b": 2 }, ["a", "b"], "image.");
});

Deno.test("JsonFieldReader truncates long values and field names in messages", async () => {
  assertEquals(toShortJson("y".repeat(58)), `"${"y".repeat(58)}"`);
  assertEquals(toShortJson("y".repeat(59)), `"${"y".repeat(56)}…`);
  const [long] = await said(() => json.requireObject(1, "f".repeat(500)));
  assertEquals(long.split(":")[0], `${"f".repeat(120)}…`);
});
