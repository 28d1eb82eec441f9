import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import { parseExtra } from "../../lib/publish/layers.ts";

Deno.test("a pair of path and media type is read from its last colon", () => {
  assertEquals(parseExtra("a b:c/d.json:application/vnd.x+json"), {
    path: "a b:c/d.json",
    mediaType: "application/vnd.x+json",
  });
  for (const text of ["", "a", "a:", ":text/plain", "a:text", "a:b c/d"]) {
    const error = assertThrows(() => parseExtra(text), ToolsmithError);
    assertEquals(error.code, "usage");
    assertStringIncludes(error.message, `"${text}"`);
  }
});
