import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { ToolsmithError } from "../../lib/errors.ts";
import { readPid, readStatus } from "../../lib/guest/_answers.ts";

function assertGuestFailed(error: unknown) {
  if (!(error instanceof ToolsmithError)) throw error;
  assertEquals(error.code, "guest_failed");
}

Deno.test("an honest agent's answers are read", () => {
  assertEquals(readPid({ pid: 42 }), 42);
  assertEquals(readStatus({ exited: false }), {
    exited: false,
    exitCode: undefined,
    output: "",
  });
  const ended = { exited: true, exitcode: 3, "out-data": "w6kK" };
  assertEquals(readStatus(ended), { exited: true, exitCode: 3, output: "é\n" });
  // Killed by a signal: the agent leaves the status out.
  assertEquals(readStatus({ exited: true, signal: 9 }).exitCode, undefined);
});

Deno.test("any other answer is a failure of the guest", () => {
  const field = fc.oneof(fc.anything(), fc.boolean(), fc.integer());
  const status = fc.record({
    exited: field,
    exitcode: field,
    "out-data": fc.oneof(field, fc.string(), fc.base64String()),
  }, { requiredKeys: [] });
  const answer = fc.oneof(fc.anything(), status, fc.record({ pid: field }));
  fc.assert(fc.property(answer, (said) => {
    try {
      const { exited, exitCode = 0, output } = readStatus(said);
      assert(typeof exited === "boolean" && typeof output === "string");
      assert(typeof exitCode === "number");
    } catch (error) {
      assertGuestFailed(error);
    }
    try {
      assert(Number.isSafeInteger(readPid(said)));
    } catch (error) {
      assertGuestFailed(error);
    }
  }));
});
