import { assert, assertEquals } from "@std/assert";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { scriptCommand } from "../support/script.ts";

/** Takes the terminal for a guest, and writes down what is set meanwhile. */
const TAKE = `
  import { queuedOutput } from "/lib/cli/output.ts";
  import { thisScreen } from "/lib/cli/screen.ts";
  import { run } from "/lib/system/process.ts";
  const modes = async () =>
    (await run("stty", { args: ["-a"], input: "inherit" })).stdout;
  const changes: boolean[] = [];
  const output = queuedOutput(Deno.stdout, "standard output");
  const said = [await modes()];
  let failure = "";
  try {
    await using screen = thisScreen(output, (taken) => changes.push(taken));
    const done = new AbortController();
    screen.onResize(() => {}, done.signal);
    const input = await screen.input();
    said.push(await modes());
    await screen.output(new TextEncoder().encode("shown"));
    // The command has ended: the terminal is given back, once.
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
      ? "a guest has each key of the terminal, until its command has ended"
      : "a guest's terminal is given back where its command does not end",
    ignore: Deno.build.os !== "linux",
    async fn() {
      await using dir = await temporaryDir();
      const [script, path] = [`${dir.path}/take.ts`, `${dir.path}/said`];
      const args = ended ? [path, "ended"] : [path];
      const command = await scriptCommand(script, TAKE, { args });
      const line = [Deno.execPath(), ...command].map((word) => `'${word}'`);
      const { stdout } = await run("script", {
        args: ["-qec", line.join(" "), "/dev/null"],
        timeoutMs: 60_000,
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
  name: "what is no terminal is not taken, and that is told",
  ignore: Deno.build.os !== "linux",
  async fn() {
    await using dir = await temporaryDir();
    const [script, path] = [`${dir.path}/take.ts`, `${dir.path}/said`];
    const command = await scriptCommand(script, TAKE, { args: [path] });
    await run(Deno.execPath(), { args: command, timeoutMs: 60_000 });
    const { changes, failure } = JSON.parse(await Deno.readTextFile(path));
    assert(/^Cannot set this terminal: ./.test(failure), failure);
    assertEquals(changes, [true, false]);
  },
});
