import { assert, assertEquals } from "@std/assert";
import { assertToolAllowed, resolveTool } from "../../lib/manifest/tools.ts";
import { failure } from "../support/failure.ts";

const tools = { fmt: "/opt/fmt/bin/fmt", lint: "/opt/lint" };

Deno.test("a tool's name becomes its path in the guest", () => {
  const rules = { tools, operations: [] };
  assertEquals(resolveTool(rules, "fmt"), "/opt/fmt/bin/fmt");
});

Deno.test("what is no tool stays as it is", () => {
  const rules = { tools, operations: [] };
  for (const command of ["ls", "/bin/ls", "toString", "__proto__", ""]) {
    assertEquals(resolveTool(rules, command), command);
  }
});

Deno.test("operations that are named are the only ones", async () => {
  const rules = { tools, operations: ["fmt", "cat"] };
  assertEquals(resolveTool(rules, "fmt"), "/opt/fmt/bin/fmt");
  assertEquals(resolveTool(rules, "cat"), "cat");
  for (const command of ["lint", "/opt/fmt/bin/fmt", "sh", "Fmt"]) {
    const error = await failure(
      "tool_forbidden",
      () => resolveTool(rules, command),
    );
    assert(error.message.includes(command));
    assert(error.hint?.includes("fmt, cat"));
    await failure("tool_forbidden", () => assertToolAllowed(rules, command));
  }
});
