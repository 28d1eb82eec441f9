import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { VERSION } from "../../lib/version.ts";
import { COMMANDS } from "../../lib/cli/commands.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { runProcess } from "../../lib/system/process.ts";
import {
  cleanEnvironment,
  cliCommand,
  jsonLines,
  orasPush,
  testWithImage,
  toolsmith,
  TYPE,
  workspace,
} from "../support/workspace.ts";

Deno.test("toolsmith --help prints the commands, and each command's flags", async () => {
  const program = await toolsmith(["--help"]);
  assertEquals([program.code, program.stderr], [0, ""]);
  for (const { name, flags } of COMMANDS) {
    assertMatch(program.stdout, new RegExp(`^  ${name} +\\S`, "m"));
    const command = await toolsmith([name, "--help"]);
    assertEquals(command.code, 0, command.stderr);
    for (const flag of Object.values(flags)) {
      assert(command.stdout.includes(`--${flag.name}`), `${name} ${flag.name}`);
    }
    assertEquals(await toolsmith(["help", name]), command);
  }
});

Deno.test("toolsmith without arguments prints the help and exits with 0", async () => {
  assertEquals(await toolsmith([]), await toolsmith(["--help"]));
});

Deno.test("toolsmith --version prints the version, also as JSON", async () => {
  const { stdout } = await toolsmith(["--version"]);
  assertEquals(stdout, `toolsmith ${VERSION}\n`);
  const json = await toolsmith(["--version", "--json"]);
  const { type, version } = JSON.parse(json.stdout);
  assertEquals([json.code, type, version], [0, "result", VERSION]);
});

testWithImage(
  "toolsmith formats sizes and times by the locale, except in JSON",
  async ({ work, image: qcow2, sha256: qcow2_sha256 }) => {
    await work.manifest({ qcow2, qcow2_sha256 });
    const env = { LC_ALL: "de_DE.UTF-8" };
    const { stderr } = await work.toolsmith(["hydrate"], { env });
    assertMatch(stderr, /downloaded 1,\d MiB in \d+,\d s/);
    const { stdout } = await work.toolsmith(["cache", "ls"], { env });
    assertMatch(
      stdout,
      / {2}1,\d MiB {2}\d\d\.\d\d\.20\d\d, \d\d:\d\d {2}verified/,
    );
    const json = await work.toolsmith(["cache", "ls", "--json"], { env });
    const [entry] = JSON.parse(json.stdout).entries;
    assert(Number.isInteger(entry.bytes), json.stdout);
    assertMatch(entry.used, /^20\d\d-\d\d-\d\dT[\d:.]+Z$/);
  },
);

Deno.test("toolsmith exits with 2 and a suggestion for a wrong command line", async () => {
  const wrong: [string[], RegExp][] = [
    [["hydrat"], /did you mean toolsmith hydrate\?/],
    [["frobnicate"], /no such command: frobnicate/],
    [["--verbose"], /no such flag: --verbose/],
    [["hydrate", "--ofline"], /did you mean --offline\?/],
    [["hydrate", "--manifest"], /--manifest needs a value/],
    [["hydrate", "--manifest", "a", "--manifest", "b"], /given 2 times/],
    [["hydrate", "extra"], /does not accept "extra"/],
    [["hydrate", "--retries=-1"], /-1 is not a whole number/],
    [["hydrate", "--retries", "many"], /many is not a whole number/],
    [["hydrate", "--stall-timeout", "0"], /not a number of seconds/],
    [["hydrate", "--", "more"], /nothing after --/],
    [["cache"], /needs an argument/],
    [["cache", "prun"], /did you mean prune\?/],
    [["cache", "prune", "--older-than", "soon"], /soon is not an age/],
    [["publish", "a.qcow2"], /needs 2 arguments/],
    [["publish", "a", "b", "--verify", "pul"], /did you mean pull\?/],
    [["publish", "a", "b", "--annotation", "x"], /not KEY=VALUE/],
    [["publish", "a", "b", "--extra", "x"], /expected PATH:TYPE/],
    [["publish", "a", "b", "--created", "now"], /now is not a time/],
    [["init"], /--ref/],
  ];
  for (const [args, words] of wrong) {
    const { code, stdout, stderr } = await toolsmith(args);
    assertEquals([code, stdout], [2, ""], args.join(" "));
    assertMatch(stderr, /^error: /);
    assertMatch(stderr, words);
  }
  const { code, stdout } = await toolsmith(["hydrate", "--bad", "--json"]);
  const { last } = jsonLines(stdout);
  assertEquals([code, last.type, last.code], [2, "error", "usage"]);
});

Deno.test("toolsmith reports an invalid manifest with its line or field", async () => {
  await using work = await workspace();
  const path = `${work.dir}/.toolsmith/tools.json`;
  const none = await work.toolsmith(["hydrate"]);
  assertEquals(none.code, 10);
  assert(none.stderr.includes(path), none.stderr);
  assertMatch(none.stderr, /toolsmith init/);

  await Deno.writeTextFile(path, '{\n  "image": {,}\n}\n');
  const syntax = await work.toolsmith(["hydrate"]);
  assertEquals(syntax.code, 11);
  assert(syntax.stderr.includes(`${path}:2:13: not JSON`), syntax.stderr);

  await work.manifest({ name: "../x", qcow2: "a", qcow2_sha256: "b" });
  const field = await work.toolsmith(["hydrate"]);
  assert(field.stderr.includes(`${path}: image.name: "../x"`), field.stderr);
});

Deno.test("toolsmith --verbose prints the causes of an error, as text and as JSON", async () => {
  await using work = await workspace();
  await work.manifest({ qcow2: "none.qcow2", qcow2_sha256: "0".repeat(64) });
  const run = (...flags: string[]) => work.toolsmith(["hydrate", ...flags]);
  const led = /\n {2}Caused by: .*no such file/i;
  assertMatch((await run("--verbose")).stderr, led);
  assertEquals(led.test((await run()).stderr), false);
  const causes = async (...flags: string[]) =>
    jsonLines((await run("--json", ...flags)).stdout).last.causes;
  assertMatch((await causes("--verbose"))[0], /no such file/i);
  assertEquals(await causes(), undefined);
});

Deno.test("toolsmith finds the manifest in a parent directory, by --manifest or by TOOLSMITH_MANIFEST", async () => {
  await using work = await workspace();
  await work.manifest({ qcow2: "none.qcow2", qcow2_sha256: "0".repeat(64) });
  await Deno.mkdir(`${work.dir}/deep/er`, { recursive: true });
  const manifest = `${work.dir}/.toolsmith/tools.json`;
  const ways: [string, string[], Record<string, string>][] = [
    [`${work.dir}/deep/er`, [], {}],
    ["/", ["--manifest", manifest], {}],
    ["/", [], { TOOLSMITH_MANIFEST: manifest }],
  ];
  for (const [cwd, args, env] of ways) {
    const output = await toolsmith(["hydrate", ...args], { cwd, env });
    // The manifest was read: its image file is missing.
    assertEquals(output.code, 13, output.stderr);
  }
});

Deno.test("doctor reports missing programs and exits with 1", async () => {
  await using work = await workspace();
  const qcow2 = "oci://127.0.0.1:9/owner/none:1";
  await work.manifest({ qcow2, qcow2_sha256: "0".repeat(64) });
  const { code, stdout } = await work.toolsmith(["doctor"], {
    env: { TOOLSMITH_ORAS: "/no/oras" },
    permissions: ["-A"],
  });
  assertEquals(code, 1);
  assertMatch(stdout, /^ok {4}manifest/m);
  assertMatch(stdout, /^fail {2}oras .*oras not found/m);
  assertMatch(
    stdout,
    /\nnext: fix oras, then run toolsmith doctor again\n$/,
  );
  // Finding and hint start in the same column.
  const lines = stdout.trimEnd().split("\n").slice(0, -1);
  const columns = lines.map((line) =>
    /^(?:(?:ok|warn|fail) +\S+(?: images)?)? +/.exec(line)![0].length
  );
  assertEquals(new Set(columns).size, 1, stdout);
  assertMatch(stdout, /^(ok|warn) +space .*GiB free/m);
  // doctor leaves nothing behind.
  assertEquals(await work.cached(), []);
  assertEquals([...Deno.readDirSync(`${work.dir}/.toolsmith`)].length, 1);
});

Deno.test("doctor prints the next step last on a complete host", async () => {
  await using work = await workspace();
  const next = async () => {
    const { stdout } = await work.toolsmith(["doctor"], {
      permissions: ["-A"],
    });
    return stdout.trimEnd().split("\n").at(-1);
  };
  assertMatch(
    `${await next()}`,
    /^next: write a manifest for an image: toolsmith init --ref REF/,
  );
  await Deno.writeTextFile(`${work.dir}/image.qcow2`, "");
  const qcow2_sha256 = "0".repeat(64);
  await work.manifest({ qcow2: "image.qcow2", qcow2_sha256 });
  assertMatch(`${await next()}`, /^next: toolsmith (run COMMAND$|hydrate)/);
});

Deno.test("mod.ts runs toolsmith when started, and does nothing when imported", async () => {
  const mod = `${PROJECT_ROOT}/mod.ts`;
  const config = `--config=${PROJECT_ROOT}/deno.json`;
  const args = await withImportMap(["run", "-A", config, mod, "--version"]);
  const env = cleanEnvironment();
  const ran = await runProcess(Deno.execPath(), { args, env });
  assertEquals(ran.stdout, `toolsmith ${VERSION}\n`);

  const { hydrate, loadManifest } = await import("../../mod.ts");
  assertEquals([typeof hydrate, typeof loadManifest], ["function", "function"]);
});

testWithImage(
  "toolsmith reports a full standard output on stderr",
  async (it) => {
    const full = "/dev/full";
    if (!await Deno.stat(full).catch(() => undefined)) return;
    const { work, dir, image: qcow2, sha256: qcow2_sha256 } = it;
    await work.manifest({ qcow2, qcow2_sha256 });
    const args = await cliCommand(["hydrate", "--json"], ["-A"]);
    const { code, stderr } = await runProcess("sh", {
      args: ["-c", 'exec "$@" > /dev/full', "sh", Deno.execPath(), ...args],
      cwd: dir,
    });
    assertEquals(code, 50, stderr);
    assertMatch(
      stderr,
      /^error: Cannot write to standard output: no space left .*\[disk_full\]\nhint: redirect/m,
    );
  },
);

/** Runs the program from a shell script as `"$@"`. */
async function byShell(script: string, args: string[], cwd?: string) {
  const command = await cliCommand(args, ["-A"]);
  return await runProcess("sh", {
    args: ["-c", script, "sh", Deno.execPath(), ...command],
    env: cleanEnvironment(),
    cwd,
  });
}

testWithImage(
  "toolsmith reports a closed standard output on stderr, unless it prints nothing",
  async ({ work, dir, image: qcow2, sha256: qcow2_sha256 }) => {
    if (Deno.build.os !== "linux") return;
    await work.manifest({ qcow2, qcow2_sha256 });
    const host = ["run", "--execution", "host", "--quiet"];
    const writing = [
      ["hydrate", "--quiet"],
      ["hydrate", "--json"],
      ["cache", "path"],
      ["--version"],
      ["--help"],
      [...host, "echo", "hi"],
    ];
    for (const args of writing) {
      const { code, stderr } = await byShell('"$@" >&-; exit $?', args, dir);
      assertEquals(code, 14, `${args}: ${stderr}`);
      assertEquals(
        stderr.split("\n").slice(-3),
        [
          "error: Cannot write to standard output: it is closed [file_unreadable]",
          "hint: redirect standard output to a file, or to /dev/null",
          "",
        ],
      );
    }
    // Commands without output succeed, and a closed stderr loses only the error.
    const silent: [string, string[]][] = [
      ['"$@" >&-; exit $?', [...host, "true"]],
      ['"$@" 2>&-; exit $?', ["hydrate"]],
    ];
    for (const [script, args] of silent) {
      const { code, stderr } = await byShell(script, args, dir);
      assertEquals([code, stderr], [0, ""]);
    }
    const both = await byShell('"$@" >&- 2>&-; exit $?', ["hydrate"], dir);
    assertEquals(both.code, 14);
  },
);

Deno.test("toolsmith accepts standard output on /dev/null, however it was opened", async () => {
  // Like Python and Node.js; without `exec` a shell would be the parent.
  const scripts = ['"$@" >/dev/null; exit $?', 'exec "$@" 1<>/dev/null'];
  for (const script of Deno.build.os === "windows" ? [] : scripts) {
    const { code, stderr } = await byShell(script, ["--version"]);
    assertEquals([code, stderr], [0, ""], script);
  }
});

testWithImage(
  "hydrate works without a home directory and finds registry credentials where docker does",
  async ({ work, dir, registry, sha256: qcow2_sha256 }) => {
    const reference = `${registry.host}/owner/image:1.0`;
    await orasPush(reference, [`image.qcow2:${TYPE}`], {
      cwd: join(dir, "dist"),
    });
    await work.manifest({ qcow2: `oci://${reference}`, qcow2_sha256 });
    // Deno itself needs a home directory unless DENO_DIR is set.
    const DENO_DIR = Deno.env.get("DENO_DIR") ??
      join(Deno.env.get("HOME") ?? "/", ".cache", "deno");
    const env = { HOME: "", DOCKER_CONFIG: "", XDG_CACHE_HOME: "", DENO_DIR };
    const { code, stderr } = await work.toolsmith(["hydrate"], { env });
    assertEquals(code, 0, stderr);
  },
);

testWithImage(
  "hydrate names the file that the system does not let grow",
  async ({ work, dir, image: qcow2, sha256: qcow2_sha256 }) => {
    if (Deno.build.os !== "linux") return;
    await work.manifest({ qcow2, qcow2_sha256 });
    const script = 'ulimit -f 500; trap "" XFSZ; exec "$@"';
    const { code, stderr } = await byShell(script, ["hydrate", "--quiet"], dir);
    assertEquals(code, 14, stderr);
    const entry = join(dir, ".toolsmith", "cache", "demo", qcow2_sha256);
    assertEquals(stderr.split("\n"), [
      `error: Cannot access ${entry}: file too large [file_unreadable]`,
      "hint: use a file system for files of that size, or raise the limit: ulimit -f",
      "",
    ]);
  },
);
