import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { Subcommand } from "../../lib/cli/subcommand.ts";
import { COMMANDS } from "../../lib/cli/commands.ts";
import { bootCommand } from "../../lib/cli/commands/boot.ts";
import { cacheCommand } from "../../lib/cli/commands/cache.ts";
import type { doctorCommand } from "../../lib/cli/commands/doctor.ts";
import { hydrateCommand } from "../../lib/cli/commands/hydrate.ts";
import { initCommand } from "../../lib/cli/commands/init.ts";
import { publishCommand } from "../../lib/cli/commands/publish.ts";
import { runCommand } from "../../lib/cli/commands/run.ts";
import * as shared from "../../lib/cli/shared_flags.ts";
import { parseCommandLine } from "../../lib/cli/command_line.ts";
import type { Flag, Flags, FlagValues } from "../../lib/cli/flag.ts";
import type { DoctorOptions } from "../../lib/doctor/doctor.ts";
import type { HydrateOptions } from "../../lib/hydrate/hydrate.ts";
import type { InitOptions } from "../../lib/hydrate/init.ts";
import type { PublishOptions } from "../../lib/publish/publish.ts";
import type { WorkspaceVmOptions } from "../../lib/run/workspace_vm.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { performCommand, recordedIo } from "../support/recorded_io.ts";

const parse = (line: string) =>
  parseCommandLine(line.split(" ").filter(Boolean));

/** Parses a line that must name this command. */
function read<F extends Flags>(command: Subcommand<F>, line: string) {
  const read = parse(`${command.name} ${line}`);
  if (read.kind !== "command") throw new Error(`it is ${read.kind}`);
  assertEquals(read.command.name, command.name);
  return { given: read.given as FlagValues<F>, words: read.words };
}

Deno.test("hydrate without flags leaves every option at its default", () => {
  assertEquals(read(hydrateCommand, "").given, {});
});

Deno.test("hydrate accepts every flag, as --flag=VALUE and --flag VALUE", () => {
  const flags =
    "--manifest m.json --cache=/c --offline --verify --force --base old.qcow2 --trusted-root root.json --arch arm64 --retries 0 --connections 7 --stall-timeout=1.5 --plain-http --ca-file ca.pem --json --quiet --no-progress";
  assertEquals(read(hydrateCommand, flags).given, {
    manifest: "m.json",
    cache: "/c",
    offline: true,
    verify: true,
    force: true,
    base: "old.qcow2",
    trustedRoot: "root.json",
    arch: "aarch64",
    connections: 7,
    retries: 0,
    stallTimeoutMs: 1500,
    plainHttp: true,
    caFile: "ca.pem",
    json: true,
    quiet: true,
    progress: false,
  });
});

Deno.test("init --arch amd64 is parsed as x86_64", () => {
  const { given } = read(initCommand, "--ref ghcr.io/o/r:1 --arch amd64");
  assertEquals([given.ref, given.arch], ["ghcr.io/o/r:1", "x86_64"]);
});

Deno.test("cache parses its action, ages and counts", () => {
  const flags = "prune --keep 3 --older-than 12h --dry-run";
  const { given, words } = read(cacheCommand, flags);
  assertEquals(words.positionals, ["prune"]);
  const { keep, olderThanMs, dryRun } = given;
  assertEquals([keep, olderThanMs, dryRun], [3, 12 * 3_600_000, true]);
  const ages = { "1s": 1000, "2m": 120_000, "30d": 2_592_000_000 };
  for (const [age, ms] of Object.entries(ages)) {
    const { given } = read(cacheCommand, `prune --older-than ${age}`);
    assertEquals(given.olderThanMs, ms);
  }
});

type UnknownOption<F extends Flags, Options> = Exclude<
  keyof F,
  keyof (Options & typeof shared.OUTPUT)
>;

/** The type check fails for a flag that the library would ignore. */
function assertOptions<F extends Flags, Options>(
  _: Record<UnknownOption<F, Options>, never>,
) {}

Deno.test("commands that pass on their flags whole have only flags that are options of the library", () => {
  assertOptions<typeof initCommand.flags, InitOptions>({});
  assertOptions<
    Omit<typeof publishCommand.flags, "manifest">,
    PublishOptions
  >({});
  assertOptions<typeof doctorCommand.flags, DoctorOptions>({});
  assertOptions<
    Omit<typeof hydrateCommand.flags, "manifest">,
    HydrateOptions
  >({});
  assertOptions<
    Omit<typeof shared.VM, "allowNet" | "hostLoopback" | "manifest">,
    WorkspaceVmOptions & HydrateOptions
  >({});
});

Deno.test("publish parses an image and a reference with flags between them", () => {
  const { given, words } = read(
    publishCommand,
    "a.qcow2 --extra=b.txt:text/plain --extra c:a/d ghcr.io/o/r:1 --annotation k=v=w --annotation e= --created 86400",
  );
  assertEquals(words.positionals, ["a.qcow2", "ghcr.io/o/r:1"]);
  assertEquals(given.extras?.length, 2);
  assertEquals(given.annotations, { k: "v=w", e: "" });
  assertEquals(given.created, new Date(86_400_000));
  assertEquals(given.verify, undefined);
});

Deno.test("parseCommandLine() keeps an argument that looks like a number as text", () => {
  const { words } = read(publishCommand, "1.0 2.50");
  assertEquals(words.positionals, ["1.0", "2.50"]);
});

Deno.test("run takes the first non-flag word as the command and passes the rest on", () => {
  const cases: [string, string, string[]][] = [
    ["uname -a", "uname", ["-a"]],
    ["-- uname -a", "uname", ["-a"]],
    ["--memory 512M uname --json", "uname", ["--json"]],
    ["--memory=512M uname --help -h", "uname", ["--help", "-h"]],
    ["sh -c x -- y --timeout 3", "sh", [
      "-c",
      "x",
      "--",
      "y",
      "--timeout",
      "3",
    ]],
    ["-- sh -- --json", "sh", ["--", "--json"]],
    ["--quiet -- --odd 1.0", "--odd", ["1.0"]],
    ["007 1e3", "007", ["1e3"]],
    ["- -", "-", ["-"]],
    ["ls --no-such-flag", "ls", ["--no-such-flag"]],
    // A word after a switch is not the switch's value.
    ["--quiet true --fresh", "true", ["--fresh"]],
    ["--fresh false", "false", []],
    ["--fresh -- true --json", "true", ["--json"]],
    ["--network=host-loopback true --quiet=3", "true", ["--quiet=3"]],
    ["-- ls --quiet=3 -h=3", "ls", ["--quiet=3", "-h=3"]],
  ];
  for (const [line, command, args] of cases) {
    const { given, words } = read(runCommand, line);
    assertEquals(words.rest, [command, ...args], line);
    assertEquals([words.positionals, given.json], [[], undefined], line);
  }
  const { given, words } = read(
    runCommand,
    "--json --env A=1 --env B= printenv --env C=2",
  );
  assertEquals(given.env, { A: "1", B: "" });
  assertEquals(words.rest, ["printenv", "--env", "C=2"]);
  assertEquals(given.json, true);
});

Deno.test("boot passes words after -- to QEMU and rejects other arguments", async () => {
  const { given, words } = read(bootCommand, "--cpus 1 -- -device x --json");
  assertEquals(words.rest, ["-device", "x", "--json"]);
  assertEquals(given.cpus, 1);
  await expectFailure("usage", () => parse("boot x"));
});

Deno.test("boot without flags sets no VM option", () => {
  const { given } = read(runCommand, "true");
  const { hydrate = {}, ...shape } = shared.workspaceVmOptions(given);
  const values = [...Object.values(shape), ...Object.values(hydrate)];
  assertEquals(values.filter((it) => it !== undefined), []);
});

Deno.test("parseCommandLine() accepts --help, -h, help, --version and -V", () => {
  for (const line of ["", "--help", "-h", "help"]) {
    const help = { kind: "help", command: undefined, given: {} } as const;
    assertEquals(parse(line), help);
  }
  for (const line of ["--version", "-V"]) {
    const version = (json: boolean) =>
      ({ kind: "version", given: { json } }) as const;
    assertEquals(parse(line), version(false));
    assertEquals(parse(`${line} --json`), version(true));
  }
  for (const command of COMMANDS) {
    const lines = ["NAME --help", "NAME -h", "NAME -h false", "help NAME"];
    for (const line of lines) {
      const read = parse(line.replace("NAME", command.name));
      assertEquals(read, { kind: "help", command, given: {} });
    }
  }
});

Deno.test("parseCommandLine() rejects a value for every switch of every command", async () => {
  for (const command of COMMANDS) {
    const flags = Object.values<Flag>({ ...command.flags, ...shared.COMMON });
    const switches = flags.filter(({ placeholder }) => !placeholder);
    for (const { name } of switches) {
      for (const value of ["3", "true", "false", "", "a=b", "--json"]) {
        const [flag, ...more] = `--${name}=${value}`.split("=");
        const line = `${command.name} --${name}=${value}`;
        const error = await expectFailure("usage", () => parse(line));
        const words = `${flag} does not accept "${more.join("=")}"`;
        assertEquals(error.message, words);
        assertStringIncludes(error.hint!, `write ${flag}`);
      }
    }
  }
});

/** A wrong command line, and parts of the message and of the hint. */
const WRONG: [string, string, string][] = [
  ["hydrat", "no such command: hydrat", "did you mean toolsmith hydrate?"],
  ["xyzzy", "no such command: xyzzy", "see toolsmith --help"],
  ["help hydrat", "no such command: hydrat", "toolsmith hydrate"],
  ["--json hydrate", "no such flag: --json", "--help"],
  ["hydrate --jsno", "hydrate has no flag --jsno", "did you mean --json?"],
  ["hydrate --off", "no flag --off", "did you mean --offline?"],
  ["hydrate --keep 3", "hydrate has no flag --keep", "hydrate --help"],
  ["hydrate --no-json", "hydrate has no flag --no-json", ""],
  ["hydrate --no-json=1", "hydrate has no flag --no-json", ""],
  ["hydrate --no-manifest=x", "hydrate has no flag --no-manifest", ""],
  ["run --no-network=none ls", "run has no flag --no-network", ""],
  ["run --no-network=host-loopback ls", "run has no flag --no-network", ""],
  ["hydrate --json.x", "hydrate has no flag --json.x", ""],
  ["hydrate -j", "hydrate has no flag -j", ""],
  ["hydrate --xyzzy=secret", "hydrate has no flag --xyzzy", ""],
  ["hydrate --offline false", 'hydrate does not accept "false"', ""],
  ["hydrate x", 'hydrate does not accept "x"', "toolsmith hydrate [flags]"],
  ["hydrate -h=3", '--help does not accept "3"', "write --help"],
  ["run --quiet=3 ls", '--quiet does not accept "3"', "write --quiet"],
  [
    "run --network=lan ls",
    '--network does not accept "lan"',
    "write --network or --network=host-loopback",
  ],
  ["hydrate --manifest", "--manifest needs a value", "--manifest PATH"],
  ["hydrate --manifest=", "--manifest needs a value", ""],
  ["hydrate --manifest --json", "--manifest needs a value", "PATH"],
  ["hydrate --cache a --cache b", "--cache is given 2 times", "once"],
  [
    "hydrate --retries 1e3",
    "1e3 is not a whole number up to 999999",
    "--retries 5",
  ],
  ["hydrate --retries 1.5", "1.5 is not a whole number", ""],
  ["hydrate --retries 9999999", "is not a whole number", ""],
  ["hydrate --connections 0", "0 is not a number from 1 to 99", "s 4"],
  ["hydrate --connections 100", "100 is not a number from 1 to 99", ""],
  ["hydrate --stall-timeout 0.0", "seconds above zero", ""],
  ["hydrate --stall-timeout 1m", "seconds above zero", ""],
  ["hydrate -- x", "hydrate takes nothing after --", ""],
  ["cache", "cache needs an argument", "ls | path | prune"],
  ["cache ls path", 'cache does not accept "path"', "ls | path | prune"],
  ["cache list", 'cache does not accept "list"', ""],
  ["cache prune --older-than 30", "30 is not an age", "30d"],
  ["run", "run needs a command", "toolsmith run COMMAND"],
  ["run --", "run needs a command", ""],
  ["run --memori 1G ls", "run has no flag --memori", "--memory?"],
  ["run --execution vn ls", 'does not accept "vn"', "did you mean vm?"],
  ["stop --cache x", "stop has no flag --cache", ""],
  ["publish a b c", 'publish does not accept "c"', ""],
  ["publish a b --annotation =v", "is not KEY=VALUE", ""],
  ["publish a b --created soon", "soon is not a time", ""],
];

/** Number of arguments; other commands take none. */
const TAKES: Record<string, number> = { publish: 2, cache: 1, completions: 1 };

for (const { name } of COMMANDS) {
  // Their arguments belong to the command that they run.
  if (name === "run" || name === "shell") continue;
  const count = TAKES[name] ?? 0;
  Deno.test(`${name} accepts exactly ${count} arguments`, async () => {
    const wrong = [count - 1, count + 1].filter((words) => words >= 0);
    for (const words of wrong) {
      await expectFailure(
        "usage",
        () => parse(`${name} ${"x ".repeat(words)}`),
      );
    }
  });
}

for (const [line, words, hint] of WRONG) {
  Deno.test(`toolsmith ${line} fails: ${words}`, async () => {
    const args = line.split(" ").filter(Boolean);
    const wrong = () => performCommand(args, recordedIo());
    const error = await expectFailure("usage", wrong);
    assertStringIncludes(error.message, words);
    assertStringIncludes(error.hint!, hint);
    assert(!error.message.includes("secret"), "the value may be one");
    assertEquals(error.exitStatus, 2);
  });
}
