import {
  assert,
  assertEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { COMMANDS, helpText } from "../../lib/cli/commands.ts";
import type { runCommand } from "../../lib/cli/commands/run.ts";
import type { Flag, FlagValues } from "../../lib/cli/flag.ts";
import * as shared from "../../lib/cli/shared_flags.ts";
import { parseCommandLine } from "../../lib/cli/command_line.ts";

Deno.test("toolsmith --help prints a line for each command", () => {
  const help = helpText();
  assert(help.startsWith("Usage: toolsmith COMMAND [flags]\n"));
  for (const { name, summary } of COMMANDS) {
    const line = help.split("\n").find((line) => line.startsWith(`  ${name} `));
    assertStringIncludes(line ?? "", summary);
  }
});

for (const command of COMMANDS) {
  Deno.test(`toolsmith ${command.name} --help prints the usage and every flag once`, () => {
    const help = helpText(command);
    assert(help.startsWith(
      `Usage: toolsmith ${command.name} ${command.usage}\n`,
    ));
    assert(help.endsWith("\n") && !help.endsWith("\n\n"));
    // No heading without flags.
    for (const part of help.split("\n\n")) assert(!/^[\w ]+:$/.test(part));
    const { summary } = command;
    const sentence = `${summary[0].toUpperCase()}${summary.slice(1)}.`;
    assertEquals(help.split("\n")[2], sentence);
    const flags = Object.values<Flag>({ ...command.flags, ...shared.COMMON });
    for (const { name, placeholder, help: words } of flags) {
      const start = placeholder
        ? `  --${name} ${placeholder} `
        : `  --${name} `;
      const lines = help.split("\n").filter((line) => line.startsWith(start));
      assertEquals(lines.length, 1, name);
      assertStringIncludes(lines[0], words);
    }
  });

  Deno.test(`toolsmith ${command.name} --help fits a terminal of 100 columns`, () => {
    for (const line of helpText(command).split("\n")) {
      assert(line.length <= 100, `${line.length}: ${line}`);
    }
  });
}

Deno.test("run parses one kind of network, and rejects two", () => {
  const networkOf = (line: string) => {
    const read = parseCommandLine(["run", ...line.split(" "), "curl"]);
    if (read.kind !== "command") throw new Error(read.kind);
    assertEquals(read.words.rest, ["curl"]);
    const given = read.given as FlagValues<typeof runCommand.flags>;
    return shared.workspaceVmOptions(given).network;
  };
  assertEquals(networkOf("--cpus 1"), undefined);
  assertEquals(networkOf("--network"), true);
  assertEquals(networkOf("--network=host-loopback"), "host-loopback");
  assertEquals(networkOf("--allow-net a.test,*.b.test:443 --allow-net c"), {
    allow: ["a.test", "*.b.test:443", "c"],
  });
  const two = [
    ...["--network --allow-net a.test", "--network --network=host-loopback"],
    "--network=host-loopback --allow-net a.test",
  ];
  for (const line of two) {
    assertThrows(() => networkOf(line), Error, "exclude each other");
  }
});

Deno.test("run parses every VM and command flag, with sizes in MiB and times in ms", () => {
  const flags =
    "--memory 2g --cpus 3 --arch arm64 --accel tcg --firmware uefi --export out --export lib:more --copy-limit 64m --network --overlay disk --fresh --no-save --boot-timeout 0.5 --timeout 7 --cwd /tmp";
  const read = (line: string) => {
    const read = parseCommandLine(["run", ...line.split(" ")]);
    if (read.kind !== "command") throw new Error(read.kind);
    return read.given as FlagValues<typeof runCommand.flags>;
  };
  const given = read(`${flags} make`);
  const { timeoutMs, cwd, env, ...vmFlags } = given;
  assertEquals([timeoutMs, cwd, env], [7000, "/tmp", undefined]);
  const { hydrate: _, exports, ...shape } = shared.workspaceVmOptions(vmFlags);
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
  const hydrateFlags =
    "--cache c --offline --verify --force --base b --connections 3 --retries 2 --stall-timeout 9 --ca-file f --plain-http --trusted-root r";
  const { hydrate } = shared.workspaceVmOptions(read(`${hydrateFlags} make`));
  assertEquals(hydrate, {
    ...{ cache: "c", offline: true, verify: true, force: true, base: "b" },
    ...{ connections: 3, retries: 2, stallTimeoutMs: 9000 },
    ...{ caFile: "f", plainHttp: true, trustedRoot: "r" },
  });
  const one = shared.workspaceVmOptions(read("--memory 600 --export out make"));
  assertEquals([one.memory, one.exports?.length], [600, 1]);
});

Deno.test("runInVmOptions() passes on the command's flags, and environment, signal and events of the program", () => {
  const env = new Map([["A", "1"]]);
  const onEvent = () => {};
  const { signal } = new AbortController();
  const given = { timeoutMs: 5, env: { B: "2" }, cwd: "/tmp" };
  assertEquals(shared.runInVmOptions(given, { env, signal, onEvent }), {
    ...{ timeoutMs: 5, env: { B: "2" }, cwd: "/tmp", hostCwd: Deno.cwd() },
    ...{ signal, vm: { ...shared.workspaceVmOptions({}), env, onEvent } },
  });
});
