import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { COMMANDS } from "../../lib/cli/commands.ts";
import { run } from "../../lib/cli/commands/run.ts";
import { ParsedFlags } from "../../lib/cli/flag_values.ts";
import { readExec, readMachine } from "../../lib/cli/flags.ts";
import { COMMON } from "../../lib/cli/spec.ts";
import { helpText } from "../../lib/cli/help.ts";

Deno.test("the program's help has a line for each command", () => {
  const help = helpText();
  assert(help.startsWith("Usage: toolsmith COMMAND [flags]\n"));
  for (const { name, summary } of COMMANDS) {
    const line = help.split("\n").find((line) => line.startsWith(`  ${name} `));
    assertStringIncludes(line ?? "", summary);
  }
});

for (const command of COMMANDS) {
  Deno.test(`the help of ${command.name} has its usage and every flag once`, () => {
    const help = helpText(command);
    assert(help.startsWith(
      `Usage: toolsmith ${command.name} ${command.usage}\n`,
    ));
    assert(help.endsWith("\n") && !help.endsWith("\n\n"));
    // A heading has flags below it.
    for (const part of help.split("\n\n")) assert(!/^[\w ]+:$/.test(part));
    const { summary } = command;
    const sentence = `${summary[0].toUpperCase()}${summary.slice(1)}.`;
    assertEquals(help.split("\n")[2], sentence);
    for (const { name, value, help: words } of [...command.flags, ...COMMON]) {
      const start = value ? `  --${name} ${value} ` : `  --${name} `;
      const lines = help.split("\n").filter((line) => line.startsWith(start));
      assertEquals(lines.length, 1, name);
      assertStringIncludes(lines[0], words);
    }
  });

  Deno.test(`the help of ${command.name} fits a terminal of 100 columns`, () => {
    for (const line of helpText(command).split("\n")) {
      assert(line.length <= 100, `${line.length}: ${line}`);
    }
  });
}

Deno.test("every flag of a machine and of its command arrives, sizes in MiB and times in ms", () => {
  const flags =
    "--memory 2G --cpus 3 --arch arm64 --accel tcg --firmware uefi --export out --export lib:more --copy-limit 64m --network --overlay disk --fresh --no-save --boot-timeout 0.5 --timeout 7 --cwd /tmp";
  const read = (line: string) => new ParsedFlags(run, line.split(" "));
  const given = read(`${flags} make`);
  const { hydrate: _, exports, ...shape } = readMachine(given);
  assertEquals(shape, {
    arch: "aarch64",
    accelerator: "tcg",
    firmware: "uefi",
    memory: 2048,
    cpus: 3,
    copyLimit: 64,
    network: true,
    overlay: "disk",
    fresh: true,
    save: false,
    bootTimeoutMs: 500,
  });
  assertEquals(exports?.map(({ tag }) => tag), [undefined, "more"]);
  assertEquals(readExec(given), { timeoutMs: 7000, cwd: "/tmp", env: {} });
  const one = readMachine(read("--memory 600 --export out make"));
  assertEquals([one.memory, one.exports?.length], [600, 1]);
});
