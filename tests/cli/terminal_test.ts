import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { queuedOutput } from "../../lib/cli/output.ts";
import { sleep } from "../../lib/system/time.ts";
import { consoleOutput } from "../../lib/cli/terminal.ts";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { runScript, scriptCommand } from "../support/script.ts";

const MIB = 1024 * 1024;

Deno.test("a console that is read slowly fills no memory, and what is left out is said", async () => {
  const read = Promise.withResolvers<void>();
  const written: Uint8Array[] = [];
  const output = queuedOutput({
    async write(bytes) {
      await read.promise;
      written.push(bytes.slice());
      return bytes.length;
    },
  }, "standard output");
  const show = consoleOutput(output);
  const chunk = new Uint8Array(MIB).fill(120);
  for (let i = 0; i < 100; i++) show(chunk);
  assertEquals(output.waiting(), 5 * chunk.length);
  read.resolve();
  await output.flushed();
  assertEquals(output.waiting(), 0);
  assertEquals(written.map(({ length }) => length), Array(5).fill(MIB));
  show(new TextEncoder().encode("again"));
  await output.flushed();
  const [note, again] = written.slice(5)
    .map((bytes) => new TextDecoder().decode(bytes));
  assertStringIncludes(note, "95.0 MiB of the console were not read in time");
  assertEquals(again, "again");
});

Deno.test("of a console 4 MiB may wait, and not a byte more", () => {
  const output = queuedOutput(
    { write: () => new Promise(() => {}) },
    "standard output",
  );
  const show = consoleOutput(output);
  for (const bytes of [4 * MIB, 1, 1]) show(new Uint8Array(bytes));
  assertEquals(output.waiting(), 4 * MIB + 1);
});

const TAKE = `
  import { guestTerminal } from "/lib/cli/terminal.ts";
  import { queuedOutput } from "/lib/cli/output.ts";
  import { run } from "/lib/system/process.ts";
  const modes = async () =>
    (await run("stty", { args: ["-a"], input: "inherit" })).stdout;
  const output = queuedOutput(Deno.stdout, "standard output");
  const terminal = guestTerminal();
  const said = [await modes()];
  terminal.restore();
  {
    using taken = terminal.take(output);
    said.push(await modes());
    terminal.restore();
    said.push(await modes());
  }
  {
    using taken = terminal.take(output);
    await taken.input.cancel();
  }
  said.push(await modes());
  await Deno.writeTextFile(Deno.args[0], JSON.stringify(said));
`;

Deno.test({
  name:
    "a terminal gives each key to the guest, keeps Ctrl-C, and is given back as it was",
  ignore: Deno.build.os !== "linux",
  async fn() {
    await using dir = await temporaryDir();
    const [script, said] = [`${dir.path}/take.ts`, `${dir.path}/said`];
    const options = { args: [said] };
    const args = await scriptCommand(script, TAKE, options);
    // Where no terminal is, nothing is set and nothing fails.
    await runScript(script, TAKE, options);
    assertEquals(JSON.parse(await Deno.readTextFile(said)), ["", "", "", ""]);
    const line = [Deno.execPath(), ...args].map((word) => `'${word}'`);
    const { code, stdout } = await run("script", {
      args: ["-qec", line.join(" "), "/dev/null"],
      timeoutMs: 60_000,
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

Deno.test("what follows a write that failed is not written, and each is told why", async () => {
  const written: number[] = [];
  const gone = Object.assign(new Error("it is gone"), { code: "EIO" });
  const output = queuedOutput({
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
    assertEquals(error.hint, "redirect standard output to another place");
  }
  // Nobody waits for events, and their failure is no crash.
  void output.write("four");
  await sleep(1);
  assertEquals([written, output.waiting()], [[3], 0]);
});
