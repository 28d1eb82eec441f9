import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  queryProcessStatus,
  startShellViaAgent,
} from "../../lib/guest/_agent_process.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";

/** A VM whose guest agent always returns this answer. */
const saying = (answer: unknown) =>
  ({ agent: () => Promise.resolve(answer) }) as unknown as Monitor;
const pidOf = (answer: unknown) => startShellViaAgent(saying(answer), [""], {});
const statusOf = (answer: unknown) => queryProcessStatus(saying(answer), 7);

function assertGuestFailed(error: unknown) {
  if (!(error instanceof ToolsmithError)) throw error;
  assertEquals(error.code, "guest_failed");
}

Deno.test("Guest agent answers: pid, exit status and output are parsed", async () => {
  assertEquals(await pidOf({ pid: 42 }), 42);
  assertEquals(await statusOf({ exited: false }), {
    exited: false,
    exitCode: undefined,
    stdout: "",
  });
  const ended = { exited: true, exitcode: 3, "out-data": "w6kK" };
  assertEquals(await statusOf(ended), {
    exited: true,
    exitCode: 3,
    stdout: "é\n",
  });
  // The agent reports no exit status for a process killed by a signal.
  const killed = await statusOf({ exited: true, signal: 9 });
  assertEquals(killed.exitCode, undefined);
});

Deno.test("Guest agent answers: a malformed answer is a guest_failed error", async () => {
  const field = fc.oneof(fc.jsonValue(), fc.boolean(), fc.integer());
  const status = fc.record({
    exited: field,
    exitcode: field,
    "out-data": fc.oneof(field, fc.string(), fc.base64String()),
  }, { requiredKeys: [] });
  const answer = fc.oneof(fc.jsonValue(), status, fc.record({ pid: field }));
  await fc.assert(fc.asyncProperty(answer, async (said) => {
    await statusOf(said).then(({ exited, exitCode = 0, stdout }) => {
      assert(typeof exited === "boolean" && typeof stdout === "string");
      assert(typeof exitCode === "number");
    }, assertGuestFailed);
    await pidOf(said).then(
      (pid) => assert(Number.isSafeInteger(pid)),
      assertGuestFailed,
    );
  }));
});
