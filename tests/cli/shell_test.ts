import { assertEquals, assertStringIncludes } from "@std/assert";
import type { shell } from "../../lib/cli/commands/shell.ts";
import { parseCommandLine } from "../../lib/cli/parse.ts";
import { failure } from "../support/failure.ts";
import { perform, recordedIo } from "../support/io.ts";

/** Reads a line of shell. */
function requestOf(...args: string[]) {
  const read = parseCommandLine(["shell", ...args]);
  if (read.kind !== "command") throw new Error(`it is ${read.kind}`);
  return read.request as ReturnType<typeof shell.parse>;
}

Deno.test("shell runs the guest's bash, else its sh, unless a command is given", async () => {
  const { command, args, output } = requestOf("--memory", "2G");
  assertEquals([command, args[0]], ["sh", "-c"]);
  assertStringIncludes(args[1], "exec bash; exec sh");
  assertEquals(output, { json: false, quiet: false, progress: true });
  const top = requestOf("--env", "A=1", "--cwd", "/", "--", "top", "-b");
  assertEquals([top.command, top.args], ["top", ["-b"]]);
  assertEquals([top.env, top.cwd], [{ A: "1" }, "/"]);
  assertEquals(requestOf("--", "top").args, []);
  await failure("usage", () => requestOf("top"));
  await failure("usage", () => requestOf("--json"));
});

Deno.test("shell needs a terminal to type on and to read", async () => {
  const { stdin, stdout } = Deno;
  const are = [stdin.isTerminal, stdout.isTerminal];
  try {
    for (
      const [types, reads] of [[false, false], [true, false], [false, true]]
    ) {
      stdin.isTerminal = () => types;
      stdout.isTerminal = () => reads;
      const error = await failure(
        "usage",
        () => perform(["shell"], recordedIo()),
      );
      assertEquals(error.message, "shell needs a terminal");
      assertStringIncludes(error.hint!, "toolsmith run COMMAND");
    }
  } finally {
    [stdin.isTerminal, stdout.isTerminal] = are;
  }
});
