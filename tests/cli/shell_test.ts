import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { parseCommandLine } from "../../lib/cli/command_line.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { performCommand, recordedIo } from "../support/recorded_io.ts";

Deno.test("shell accepts a command after -- and the flags of run except --json", async () => {
  const read = (...args: string[]) => parseCommandLine(["shell", ...args]);
  const top = read("--env", "A=1", "--cwd", "/", "--", "top", "-b");
  assert(top.kind === "command");
  assertEquals(top.words.rest, ["top", "-b"]);
  assertEquals([top.given.env, top.given.cwd], [{ A: "1" }, "/"]);
  await expectFailure("usage", () => read("top"));
  await expectFailure("usage", () => read("--json"));
});

Deno.test("shell needs a terminal on both stdin and stdout", async () => {
  const { stdin, stdout } = Deno;
  const are = [stdin.isTerminal, stdout.isTerminal];
  try {
    for (
      const [types, reads] of [[false, false], [true, false], [false, true]]
    ) {
      stdin.isTerminal = () => types;
      stdout.isTerminal = () => reads;
      const error = await expectFailure(
        "usage",
        () => performCommand(["shell"], recordedIo()),
      );
      assertEquals(
        error.message,
        "shell needs a terminal on standard input and output",
      );
      assertStringIncludes(error.hint!, "toolsmith run COMMAND");
    }
    [stdin.isTerminal, stdout.isTerminal] = [() => true, () => true];
    const started = performCommand(["shell"], recordedIo());
    await assertRejects(() => started, Error, "no screen is given");
  } finally {
    [stdin.isTerminal, stdout.isTerminal] = are;
  }
});
