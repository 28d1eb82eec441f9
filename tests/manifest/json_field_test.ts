import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  JsonField,
  parseJsonField,
  toShortJson,
} from "../../lib/manifest/_json_field.ts";
import { expectFailure } from "../support/expect_failure.ts";

const FORMAT_HINT = "see docs/consuming.md for the manifest format";
const parse = (text: string) => parseJsonField(text, "/work/tools.json").value;
const field = (path: string, value?: unknown) =>
  new JsonField("/work/tools.json", path, value);

/** Returns message and hint of a failure, without the file. */
async function said(work: () => unknown): Promise<[string, string?]> {
  const { message, hint } = await expectFailure("manifest_invalid", work);
  assert(message.startsWith("/work/tools.json:"), message);
  return [message.slice("/work/tools.json:".length).trim(), hint];
}

Deno.test("parseJsonField() accepts 64 nesting levels and rejects 65", async () => {
  const nested = (depth: number) => "[".repeat(depth) + "]".repeat(depth);
  parse(nested(64));
  assertEquals(await said(() => parse(nested(65))), [
    "JSON is nested too deeply",
    FORMAT_HINT,
  ]);
});

Deno.test("parseJsonField() reports a syntax error on one line, with line and column", async () => {
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
    const [message, hint] = await said(() => parse(text));
    // V8's message, without its position and the text.
    assertMatch(message, new RegExp(`^${place}: not JSON: [A-Z][^"\\n]+$`));
    assert(!/ (?:in|after) JSON| position /.test(message), message);
    assertEquals(
      hint,
      "fix the JSON syntax at this position; comments are not allowed",
    );
  }
  assertEquals(parse("\uFEFF[7]"), [7]);
});

Deno.test("parseJsonField() rejects a duplicate key and names its path, but allows duplicates inside x- fields", async () => {
  const cases: [string, string][] = [
    ['{"a":1,"a":2}', "a"],
    ['{"b":{"c":{"a":1,"a":2}}}', "b.c.a"],
    ['{"b":[{"a":1,"a":2}]}', "b.a"],
    ['{"x-a":1,"x-a":2}', "x-a"],
  ];
  for (const [text, field] of cases) {
    assertEquals(await said(() => parse(text)), [
      `${field}: duplicate key`,
      "remove one of the duplicate keys",
    ]);
  }
  parse('{"x-other":{"a":1,"a":2},"b":[{"a":1},{"a":1}]}');
});

Deno.test("JsonField names the field, its expected type and a hint when a value is wrong", async () => {
  assertEquals(field("name", " x ").requiredText("how"), " x ");
  assertEquals(field("name", " x ").optionalText(), "x");
  assertEquals(field("empty", " ").optionalText(), undefined);
  assertEquals(field("gone").optionalText(), undefined);
  const cases: [() => unknown, string, string][] = [
    [
      () => field("image.gone").requiredText("how"),
      "image.gone: missing",
      "how",
    ],
    [
      () => field("image.empty", " ").requiredText("how"),
      "image.empty: empty",
      "how",
    ],
    [
      () => field("number", 5).requiredText("how"),
      "number: 5 is not a string",
      "write the value as a string in double quotes",
    ],
    [
      () => field("list", []).optionalText(),
      "list: [] is not a string",
      "write the value as a string in double quotes",
    ],
    [
      () => field("image", []).object(),
      "image: [] is not an object",
      FORMAT_HINT,
    ],
    [
      () => field("", null).object(),
      "null is not an object",
      FORMAT_HINT,
    ],
    [
      () => field("a").fields(),
      "a: undefined is not an object",
      FORMAT_HINT,
    ],
    [
      () => field("", { a: 1, "x-b": 2, c: 3 }).fields("a", "b"),
      "c: unknown field",
      "use one of these fields: a, b",
    ],
    [
      () => field("image", { c: 3 }).fields("a", "b"),
      "image.c: unknown field",
      "use one of these fields: image.a, image.b",
    ],
  ];
  for (const [work, message, hint] of cases) {
    assertEquals(await said(work), [message, hint]);
  }
  const { a, b } = field("image", { a: 1, "x-b": 2 }).fields("a", "b");
  assertEquals([a.value, a.path, b.value], [1, "image.a", undefined]);
});

Deno.test("JsonField truncates long values and field names in messages", async () => {
  assertEquals(toShortJson("y".repeat(58)), `"${"y".repeat(58)}"`);
  assertEquals(toShortJson("y".repeat(59)), `"${"y".repeat(56)}…`);
  const [long] = await said(() => field("f".repeat(500), 1).object());
  assertEquals(long.split(":")[0], `${"f".repeat(120)}…`);
});
