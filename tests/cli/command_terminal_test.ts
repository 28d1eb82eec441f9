import { assert, assertEquals } from "@std/assert";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { scriptCommand } from "../support/script.ts";

/** Opens a command screen and records the terminal's modes before, during and after. */
const TAKE = `
  import { createQueuedOutput } from "/lib/cli/queued_output.ts";
  import { createCommandTerminal } from "/lib/cli/command_terminal.ts";
  import { runProcess } from "/lib/system/process.ts";
  const modes = async () =>
    (await runProcess("stty", { args: ["-a"], input: "inherit" })).stdout;
  const changes: boolean[] = [];
  const output = createQueuedOutput(Deno.stdout, "standard output");
  const said = [await modes()];
  let failure = "";
  try {
    await using screen = createCommandTerminal(output, (taken) => changes.push(taken));
    const done = new AbortController();
    screen.onResize(() => {}, done.signal);
    const input = await screen.keystrokes();
    said.push(await modes());
    await screen.output(new TextEncoder().encode("shown"));
    // The command has ended: the terminal is restored once.
    if (Deno.args[1]) done.abort();
    await input.cancel();
  } catch (error) {
    failure = error.message;
  }
  said.push(await modes());
  await Deno.writeTextFile(Deno.args[0], JSON.stringify({ said, changes, failure }));
  Deno.exit();
`;

for (const ended of [true, false]) {
  Deno.test({
    name: ended
      ? "createCommandTerminal() passes each key to the guest until its command has ended"
      : "createCommandTerminal() restores the terminal if the guest's command does not end",
    ignore: Deno.build.os !== "linux",
    async fn() {
      await using dir = await temporaryDir();
      const [script, path] = [`${dir.path}/take.ts`, `${dir.path}/said`];
      const args = ended ? [path, "ended"] : [path];
      const command = await scriptCommand(script, TAKE, { args });
      const line = [Deno.execPath(), ...command].map((word) => `'${word}'`);
      const { stdout } = await runProcess("script", {
        args: ["-qec", line.join(" "), "/dev/null"],
        timeoutMs: 600_000,
      });
      const { said: [before, taken, ...after], changes, failure } = JSON.parse(
        await Deno.readTextFile(path),
      );
      assertEquals([failure, changes], ["", [true, false]]);
      for (const mode of ["-icanon", "-isig", "-echo", "-iexten"]) {
        assert(taken.split(/[\s;]+/).includes(mode), taken);
      }
      assertEquals(after, [before]);
      assert(stdout.includes("shown"), stdout);
    },
  });
}

Deno.test({
  name: "createCommandTerminal() throws when stdout is not a terminal",
  ignore: Deno.build.os !== "linux",
  async fn() {
    await using dir = await temporaryDir();
    const [script, path] = [`${dir.path}/take.ts`, `${dir.path}/said`];
    const command = await scriptCommand(script, TAKE, { args: [path] });
    await runProcess(Deno.execPath(), { args: command, timeoutMs: 600_000 });
    const { changes, failure } = JSON.parse(await Deno.readTextFile(path));
    assert(/^Cannot set the terminal to raw mode: ./.test(failure), failure);
    assertEquals(changes, [true, false]);
  },
});
