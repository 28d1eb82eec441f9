import { assert, assertEquals } from "@std/assert";
import {
  assertToolAllowed,
  resolveToolPath,
} from "../../lib/manifest/tools.ts";
import { expectFailure } from "../support/expect_failure.ts";

const tools = { fmt: "/opt/fmt/bin/fmt", lint: "/opt/lint" };

Deno.test("resolveToolPath() returns the guest path that tools lists for a name", () => {
  const rules = { tools, operations: [] };
  assertEquals(resolveToolPath(rules, "fmt"), "/opt/fmt/bin/fmt");
});

Deno.test("resolveToolPath() returns an unknown name unchanged", () => {
  const rules = { tools, operations: [] };
  for (const command of ["ls", "/bin/ls", "toString", "__proto__", ""]) {
    assertEquals(resolveToolPath(rules, command), command);
  }
});

Deno.test("resolveToolPath() rejects a command that operations does not list", async () => {
  const rules = { tools, operations: ["fmt", "cat"] };
  assertEquals(resolveToolPath(rules, "fmt"), "/opt/fmt/bin/fmt");
  assertEquals(resolveToolPath(rules, "cat"), "cat");
  for (const command of ["lint", "/opt/fmt/bin/fmt", "sh", "Fmt"]) {
    const error = await expectFailure(
      "tool_forbidden",
      () => resolveToolPath(rules, command),
    );
    assert(error.message.includes(command));
    assert(error.hint?.includes("fmt, cat"));
    await expectFailure(
      "tool_forbidden",
      () => assertToolAllowed(rules, command),
    );
  }
});
