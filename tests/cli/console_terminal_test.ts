import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { createQueuedOutput } from "../../lib/cli/queued_output.ts";
import { sleep } from "../../lib/system/time.ts";
import { createLossyConsoleWriter } from "../../lib/cli/console_terminal.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { runScript, scriptCommand } from "../support/script.ts";

const MIB = 1024 * 1024;

Deno.test("createLossyConsoleWriter() drops output that is read too slowly and prints how much it dropped", async () => {
  const read = Promise.withResolvers<void>();
  const written: Uint8Array[] = [];
  const output = createQueuedOutput({
    async write(bytes) {
      await read.promise;
      written.push(bytes.slice());
      return bytes.length;
    },
  }, "standard output");
  const show = createLossyConsoleWriter(output);
  const chunk = new Uint8Array(MIB).fill(120);
  for (let i = 0; i < 100; i++) show(chunk);
  assertEquals(output.pendingBytes(), 5 * chunk.length);
  read.resolve();
  await output.flush();
  assertEquals(output.pendingBytes(), 0);
  assertEquals(written.map(({ length }) => length), Array(5).fill(MIB));
  show(new TextEncoder().encode("again"));
  await output.flush();
  const [note, again] = written.slice(5)
    .map((bytes) => new TextDecoder().decode(bytes));
  assertStringIncludes(note, "dropped 95.0 MiB of console output");
  assertEquals(again, "again");
});

Deno.test("createLossyConsoleWriter() drops output while more than 4 MiB are pending", () => {
  const output = createQueuedOutput(
    { write: () => new Promise(() => {}) },
    "standard output",
  );
  const show = createLossyConsoleWriter(output);
  for (const bytes of [4 * MIB, 1, 1]) show(new Uint8Array(bytes));
  assertEquals(output.pendingBytes(), 4 * MIB + 1);
});

const TAKE = `
  import { attachConsole, restoreConsole } from "/lib/cli/console_terminal.ts";
  import { createQueuedOutput } from "/lib/cli/queued_output.ts";
  import { runProcess } from "/lib/system/process.ts";
  const modes = async () =>
    (await runProcess("stty", { args: ["-a"], input: "inherit" })).stdout;
  const output = createQueuedOutput(Deno.stdout, "standard output");
  const said = [await modes()];
  restoreConsole();
  {
    using taken = attachConsole(output);
    said.push(await modes());
    restoreConsole();
    said.push(await modes());
  }
  {
    using taken = attachConsole(output);
    await taken.input.cancel();
  }
  said.push(await modes());
  await Deno.writeTextFile(Deno.args[0], JSON.stringify(said));
`;

Deno.test({
  name:
    "attachConsole() sets -icanon, -echo and isig, and restores the terminal's mode",
  ignore: Deno.build.os !== "linux",
  async fn() {
    await using dir = await temporaryDir();
    const [script, said] = [`${dir.path}/take.ts`, `${dir.path}/said`];
    const options = { args: [said] };
    const args = await scriptCommand(script, TAKE, options);
    // Without a terminal, nothing is set and nothing fails.
    await runScript(script, TAKE, options);
    assertEquals(JSON.parse(await Deno.readTextFile(said)), ["", "", "", ""]);
    const line = [Deno.execPath(), ...args].map((word) => `'${word}'`);
    const { code, stdout } = await runProcess("script", {
      args: ["-qec", line.join(" "), "/dev/null"],
      timeoutMs: 600_000,
    });
    assertEquals(code, 0, stdout);
    const [before, taken, ...after] = JSON.parse(
      await Deno.readTextFile(said),
    );
    assertEquals(after, [before, before]);
    for (const mode of ["-icanon", "-echo", "isig"]) {
      assert(taken.split(/[\s;]+/).includes(mode), taken);
    }
  },
});

Deno.test("createQueuedOutput() writes nothing after a failed write and rejects every later write", async () => {
  const written: number[] = [];
  const gone = Object.assign(new Error("it is gone"), { code: "EIO" });
  const output = createQueuedOutput({
    write(bytes) {
      if (written.length === 1) return Promise.reject(gone);
      written.push(bytes.length);
      return Promise.resolve(bytes.length);
    },
  }, "standard output");
  await output.write("one");
  for (const text of ["two", "three"]) {
    const error = await output.write(text).catch((error) => error);
    assertEquals(error.message, "Cannot write to standard output: it is gone");
    assertEquals(error.code, "file_unreadable");
    assertEquals(
      error.hint,
      "redirect standard output to a file that can be written",
    );
  }
  // Events are not awaited; their failed writes must not crash the process.
  void output.write("four");
  await sleep(1);
  assertEquals([written, output.pendingBytes()], [[3], 0]);
});
