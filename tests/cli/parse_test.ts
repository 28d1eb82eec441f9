import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  type Command,
  type CommandOf,
  parseCommand,
} from "../../lib/cli/parse.ts";
import { COMMANDS } from "../../lib/cli/flags.ts";
import { closest } from "../../lib/cli/flag_values.ts";
import { failure } from "../support/failure.ts";

const parse = (line: string) => parseCommand(line.split(" ").filter(Boolean));

/** Reads a line that must be a command of this kind. */
function parseAs<K extends Command["kind"]>(kind: K, line: string) {
  const command = parse(line);
  assertEquals(command.kind, kind);
  return command as CommandOf<K>;
}

Deno.test("hydrate alone leaves every choice to its usual value", () => {
  assertEquals(parse("hydrate"), {
    kind: "hydrate",
    hydrate: {
      manifest: undefined,
      cache: undefined,
      offline: false,
      verify: false,
      force: false,
      retries: undefined,
      stallTimeoutMs: undefined,
      caFile: undefined,
    },
    output: { json: false, quiet: false, progress: true },
  });
});

Deno.test("every flag of hydrate arrives, with = and without", () => {
  const flags =
    "--manifest m.json --cache=/c --offline --verify --force --retries 0 --stall-timeout=1.5 --plain-http --ca-file ca.pem --json --quiet --no-progress";
  assertEquals(parse(`hydrate ${flags}`), {
    kind: "hydrate",
    hydrate: {
      manifest: "m.json",
      cache: "/c",
      offline: true,
      verify: true,
      force: true,
      retries: 0,
      stallTimeoutMs: 1500,
      plainHttp: true,
      caFile: "ca.pem",
    },
    output: { json: true, quiet: true, progress: false },
  });
});

Deno.test("cache has an action, and ages and counts as numbers", () => {
  assertEquals(parse("cache prune --keep 3 --older-than 12h --dry-run"), {
    kind: "cache",
    action: "prune",
    manifest: undefined,
    cache: undefined,
    keep: 3,
    olderThanMs: 12 * 3_600_000,
    dryRun: true,
    json: false,
  });
  const ages = { "1s": 1000, "2m": 120_000, "30d": 2_592_000_000 };
  for (const [age, ms] of Object.entries(ages)) {
    const command = parseAs("cache", `cache prune --older-than ${age}`);
    assertEquals(command.olderThanMs, ms);
  }
  assertEquals(parseAs("cache", "cache ls").keep, 1);
});

Deno.test("publish takes an image and a reference, and flags among them", () => {
  const command = parseAs(
    "publish",
    "publish a.qcow2 --extra=b.txt:text/plain --extra c:a/d ghcr.io/o/r:1 --annotation k=v=w --annotation e= --created 86400",
  );
  assertEquals([command.path, command.reference], ["a.qcow2", "ghcr.io/o/r:1"]);
  assertEquals(command.options.extras?.length, 2);
  assertEquals(command.options.annotations, { k: "v=w", e: "" });
  assertEquals(command.options.created, new Date(86_400_000));
  assertEquals(command.options.verify, "manifest");
});

Deno.test("a positional argument that looks like a number stays as it is written", () => {
  const command = parseAs("publish", "publish 1.0 2.50");
  assertEquals([command.path, command.reference], ["1.0", "2.50"]);
});

Deno.test("help and version are asked for in every usual way", () => {
  for (const line of ["", "--help", "-h", "help"]) {
    assertEquals(parseAs("help", line).command, undefined);
  }
  for (const line of ["--version", "-V"]) {
    assertEquals(parse(line), { kind: "version" });
  }
  for (const command of COMMANDS) {
    for (const line of ["NAME --help", "NAME -h", "help NAME"]) {
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
  ["hydrate x", 'hydrate does not take "x"', "toolsmith hydrate [flags]"],
  ["hydrate --manifest", "--manifest needs a value", "--manifest PATH"],
  ["hydrate --manifest=", "--manifest needs a value", ""],
  ["hydrate --manifest --json", "--manifest needs a value", "PATH"],
  ["hydrate --cache a --cache b", "--cache is given 2 times", "once"],
  ["hydrate --retries 1e3", "1e3 is not a whole number", "--retries 5"],
  ["hydrate --retries 1.5", "1.5 is not a whole number", ""],
  ["hydrate --retries 9999999", "is not a whole number", ""],
  ["hydrate --stall-timeout 0.0", "seconds above zero", ""],
  ["hydrate --stall-timeout 1m", "seconds above zero", ""],
  ["hydrate -- x", "hydrate takes nothing after --", ""],
  ["cache", "cache needs an argument", "ls | path | prune"],
  ["cache ls path", 'cache does not take "path"', "ls | path | prune"],
  ["cache list", 'cache does not know "list"', ""],
  ["cache prune --older-than 30", "30 is not an age", "30d"],
  ["publish a b c", 'publish does not take "c"', ""],
  ["publish a b --annotation =v", "is not KEY=VALUE", ""],
  ["publish a b --created soon", "soon is not a time", ""],
];

for (const [line, words, hint] of WRONG) {
  Deno.test(`toolsmith ${line}: ${words}`, async () => {
    const error = await failure("usage", () => parse(line));
    assertStringIncludes(error.message, words);
    assertStringIncludes(error.hint!, hint);
    assert(!error.message.includes("secret"), "the value may be one");
    assertEquals(error.exitStatus, 2);
  });
}

Deno.test("a suggestion is close, or there is none", () => {
  const names = ["offline", "json", "ca-file", "cache"];
  assertEquals(closest("ofline", names), "offline");
  assertEquals(closest("JSON", names), undefined);
  assertEquals(closest("ca", names), "ca-file");
  assertEquals(closest("cahce", names), "cache");
  assertEquals(closest("x", names), undefined);
  assertEquals(closest("", names), undefined);
  assertEquals(closest("offline", []), undefined);
});
