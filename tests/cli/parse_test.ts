import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { Command } from "../../lib/cli/command.ts";
import { COMMANDS } from "../../lib/cli/commands.ts";
import { boot } from "../../lib/cli/commands/boot.ts";
import { cache } from "../../lib/cli/commands/cache.ts";
import { hydrate } from "../../lib/cli/commands/hydrate.ts";
import { init } from "../../lib/cli/commands/init.ts";
import { publish } from "../../lib/cli/commands/publish.ts";
import { run } from "../../lib/cli/commands/run.ts";
import { parseCommandLine } from "../../lib/cli/parse.ts";
import { failure } from "../support/failure.ts";

const parse = (line: string) =>
  parseCommandLine(line.split(" ").filter(Boolean));

/** Reads a line that must be of this command. */
function requestOf<T>(command: Command<T>, line: string): T {
  const read = parse(`${command.name} ${line}`);
  if (read.kind !== "command") throw new Error(`it is ${read.kind}`);
  assertEquals(read.command.name, command.name);
  return read.request as T;
}

Deno.test("hydrate alone leaves every choice to its usual value", () => {
  assertEquals(requestOf(hydrate, ""), {
    manifest: undefined,
    options: {
      cache: undefined,
      offline: false,
      verify: false,
      force: false,
      arch: undefined,
      connections: undefined,
      retries: undefined,
      stallTimeoutMs: undefined,
      plainHttp: undefined,
      caFile: undefined,
    },
    output: { json: false, quiet: false, progress: true },
  });
});

Deno.test("every flag of hydrate arrives, with = and without", () => {
  const flags =
    "--manifest m.json --cache=/c --offline --verify --force --arch arm64 --retries 0 --connections 7 --stall-timeout=1.5 --plain-http --ca-file ca.pem --json --quiet --no-progress";
  assertEquals(requestOf(hydrate, flags), {
    manifest: "m.json",
    options: {
      cache: "/c",
      offline: true,
      verify: true,
      force: true,
      arch: "aarch64",
      connections: 7,
      retries: 0,
      stallTimeoutMs: 1500,
      plainHttp: true,
      caFile: "ca.pem",
    },
    output: { json: true, quiet: true, progress: false },
  });
});

Deno.test("init takes the processor whose image of an index is pinned", () => {
  const { options } = requestOf(init, "--ref ghcr.io/o/r:1 --arch amd64");
  assertEquals([options.ref, options.arch], ["ghcr.io/o/r:1", "x86_64"]);
});

Deno.test("cache has an action, and ages and counts as numbers", () => {
  const flags = "prune --keep 3 --older-than 12h --dry-run";
  assertEquals(requestOf(cache, flags), {
    action: "prune",
    manifest: undefined,
    cache: undefined,
    options: { keep: 3, olderThanMs: 12 * 3_600_000, dryRun: true },
    json: false,
  });
  const ages = { "1s": 1000, "2m": 120_000, "30d": 2_592_000_000 };
  for (const [age, ms] of Object.entries(ages)) {
    const { options } = requestOf(cache, `prune --older-than ${age}`);
    assertEquals(options.olderThanMs, ms);
  }
  assertEquals(requestOf(cache, "ls").options.keep, 1);
});

Deno.test("publish takes an image and a reference, and flags among them", () => {
  const { path, reference, options } = requestOf(
    publish,
    "a.qcow2 --extra=b.txt:text/plain --extra c:a/d ghcr.io/o/r:1 --annotation k=v=w --annotation e= --created 86400",
  );
  assertEquals([path, reference], ["a.qcow2", "ghcr.io/o/r:1"]);
  assertEquals(options.extras?.length, 2);
  assertEquals(options.annotations, { k: "v=w", e: "" });
  assertEquals(options.created, new Date(86_400_000));
  assertEquals(options.verify, "manifest");
});

Deno.test("a positional argument that looks like a number stays as it is written", () => {
  const { path, reference } = requestOf(publish, "1.0 2.50");
  assertEquals([path, reference], ["1.0", "2.50"]);
});

Deno.test("run takes the first word that is no flag for the command, and passes the rest on", () => {
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
    // A word behind a switch is no value of it.
    ["--quiet true --fresh", "true", ["--fresh"]],
    ["--fresh false", "false", []],
    ["--fresh -- true --json", "true", ["--json"]],
  ];
  for (const [line, command, args] of cases) {
    const request = requestOf(run, line);
    assertEquals([request.command, request.args], [command, args], line);
    assertEquals(request.output.json, false, line);
  }
  const request = requestOf(
    run,
    "--json --env A=1 --env B= printenv --env C=2",
  );
  assertEquals(request.env, { A: "1", B: "" });
  assertEquals(request.args, ["--env", "C=2"]);
  assertEquals(request.output.json, true);
});

Deno.test("boot passes on to QEMU what follows --, and takes no words", async () => {
  const { vm } = requestOf(boot, "--cpus 1 -- -device x --json");
  assertEquals(vm.qemuArgs, ["-device", "x", "--json"]);
  assertEquals(vm.cpus, 1);
  await failure("usage", () => parse("boot x"));
});

Deno.test("a machine that is asked nothing special is shaped by nothing", () => {
  const { hydrate: _, fresh, save, ...shape } = requestOf(run, "true").vm;
  assertEquals([fresh, save], [false, true]);
  assertEquals(Object.values(shape).filter((it) => it !== undefined), []);
});

Deno.test("help and version are asked for in every usual way", () => {
  for (const line of ["", "--help", "-h", "help"]) {
    assertEquals(parse(line), { kind: "help" });
  }
  for (const line of ["--version", "-V"]) {
    assertEquals(parse(line), { kind: "version", json: false });
    const json = parse(`${line} --json`);
    assertEquals(json, { kind: "version", json: true });
  }
  for (const command of COMMANDS) {
    const lines = ["NAME --help", "NAME -h", "NAME -h false", "help NAME"];
    for (const line of lines) {
      const read = parse(line.replace("NAME", command.name));
      assertEquals(read, { kind: "help", command });
    }
  }
});

/** A wrong line, what is said, and what is suggested. */
const WRONG: [string, string, string][] = [
  ["hydrat", "no such command: hydrat", "did you mean toolsmith hydrate?"],
  ["xyzzy", "no such command: xyzzy", "--help lists them"],
  ["help hydrat", "no such command: hydrat", "toolsmith hydrate"],
  ["--json hydrate", "no such flag: --json", "--help"],
  ["hydrate --jsno", "hydrate has no flag --jsno", "did you mean --json?"],
  ["hydrate --off", "no flag --off", "did you mean --offline?"],
  ["hydrate --keep 3", "hydrate has no flag --keep", "hydrate --help"],
  ["hydrate --no-json", "hydrate has no flag --no-json", ""],
  ["hydrate --json.x", "hydrate has no flag --json.x", ""],
  ["hydrate -j", "hydrate has no flag -j", ""],
  ["hydrate --xyzzy=secret", "hydrate has no flag --xyzzy", ""],
  ["hydrate --offline false", 'hydrate does not take "false"', ""],
  ["hydrate x", 'hydrate does not take "x"', "toolsmith hydrate [flags]"],
  ["hydrate --manifest", "--manifest needs a value", "--manifest PATH"],
  ["hydrate --manifest=", "--manifest needs a value", ""],
  ["hydrate --manifest --json", "--manifest needs a value", "PATH"],
  ["hydrate --cache a --cache b", "--cache is given 2 times", "once"],
  ["hydrate --retries 1e3", "1e3 is not a whole number", "--retries 5"],
  ["hydrate --retries 1.5", "1.5 is not a whole number", ""],
  ["hydrate --retries 9999999", "is not a whole number", ""],
  ["hydrate --connections 0", "0 is not a number from 1 to 99", "s 4"],
  ["hydrate --connections 100", "100 is not a number from 1 to 99", ""],
  ["hydrate --stall-timeout 0.0", "seconds above zero", ""],
  ["hydrate --stall-timeout 1m", "seconds above zero", ""],
  ["hydrate -- x", "hydrate takes nothing after --", ""],
  ["cache", "cache needs an argument", "ls | path | prune"],
  ["cache ls path", 'cache does not take "path"', "ls | path | prune"],
  ["cache list", 'cache does not know "list"', ""],
  ["cache prune --older-than 30", "30 is not an age", "30d"],
  ["run", "run needs a command", "toolsmith run COMMAND"],
  ["run --", "run needs a command", ""],
  ["run --memori 1G ls", "run has no flag --memori", "--memory?"],
  ["run --execution vn ls", 'does not know "vn"', "did you mean vm?"],
  ["stop --cache x", "stop has no flag --cache", ""],
  ["publish a b c", 'publish does not take "c"', ""],
  ["publish a b --annotation =v", "is not KEY=VALUE", ""],
  ["publish a b --created soon", "soon is not a time", ""],
];

/** How many words commands take; the others take none. */
const TAKES: Record<string, number> = { publish: 2, cache: 1, completions: 1 };

for (const { name } of COMMANDS) {
  // What follows these is the guest's.
  if (name === "run" || name === "shell") continue;
  const count = TAKES[name] ?? 0;
  Deno.test(`${name} takes ${count} words, no fewer and no more`, async () => {
    const wrong = [count - 1, count + 1].filter((words) => words >= 0);
    for (const words of wrong) {
      await failure("usage", () => parse(`${name} ${"x ".repeat(words)}`));
    }
  });
}

for (const [line, words, hint] of WRONG) {
  Deno.test(`toolsmith ${line}: ${words}`, async () => {
    const error = await failure("usage", () => parse(line));
    assertStringIncludes(error.message, words);
    assertStringIncludes(error.hint!, hint);
    assert(!error.message.includes("secret"), "the value may be one");
    assertEquals(error.exitStatus, 2);
  });
}
