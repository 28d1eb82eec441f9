/** Tests `deno task test` with generated test files. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { runProcess, spawnProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { assertEnded } from "../support/processes.ts";

/** Writes test files, and returns the arguments to run them. */
async function runner(
  dir: string,
  files: Record<string, string>,
  ...flags: string[]
): Promise<string[]> {
  for (const [name, code] of Object.entries(files)) {
    await Deno.writeTextFile(join(dir, name), code);
  }
  const paths = Object.keys(files).map((name) => join(dir, name));
  const script = `${PROJECT_ROOT}/scripts/test.ts`;
  return await withImportMap([
    "run",
    "-A",
    script,
    "--jobs=2",
    ...flags,
    ...paths,
  ]);
}

const env = { NO_COLOR: "1", CI: "" };
const unix = { ignore: Deno.build.os === "windows" };
const lines = (text: string) => text.trimEnd().split("\n");

const IMPORT_REQUIRES =
  `import { requires } from "${PROJECT_ROOT}/tests/support/parts.ts";\n`;

Deno.test({
  name:
    "deno task test prints one total line for all files, and fails if one file fails",
  ...unix,
  async fn() {
    await using dir = await temporaryDir();
    const args = await runner(dir.path, {
      "a_test.ts": `${IMPORT_REQUIRES}
        Deno.test("passes", async (t) => { await t.step("a step", () => {}); });
        Deno.test({ name: "boots", ...requires("qemu"), fn() {} });`,
      "b_test.ts": `Deno.test("breaks", () => {
        console.log("what it printed");
        throw new Error("why it broke");
      });`,
      "c_test.ts": `throw new Error("it cannot be loaded");`,
      "d_test.ts": `${IMPORT_REQUIRES}
        Deno.test({ name: "boots twice", ...requires("qemu"), fn() {} });`,
    });
    const { code, stdout } = await runProcess(Deno.execPath(), {
      args,
      env: { ...env, TOOLSMITH_TEST_WITHOUT: "qemu" },
    });
    assertEquals(code, 1, stdout);
    const printed = lines(stdout);
    assertEquals(printed.at(-1), "1 passed, 2 failed, 2 skipped");
    for (
      const text of ["what it printed", "why it broke", "it cannot be loaded"]
    ) {
      assertStringIncludes(stdout, text);
    }
    const after = printed.slice(printed.indexOf("skipped 2: without qemu"));
    assert(after[1].startsWith("qemu is missing: "));
    // A service that shows only the end of a long log shows the errors.
    assert(after.includes("error: Error: why it broke"), stdout);
    const failed = after.filter((line) => line.startsWith("failed: "));
    assertEquals(failed.length, 2, stdout);
  },
});

Deno.test({
  name: "deno task test passes one shuffle seed to all files",
  ...unix,
  async fn() {
    await using dir = await temporaryDir();
    const passes = `Deno.test("one", () => {}); Deno.test("two", () => {});`;
    const files = { "a_test.ts": passes, "b_test.ts": passes };
    const args = await runner(dir.path, files, "--shuffle", "--slowest");
    const { code, stdout } = await runProcess(Deno.execPath(), { args, env });
    assertEquals(code, 0, stdout);
    assert(/^shuffled: --shuffle=\d+$/m.test(stdout), stdout);
    assertEquals(stdout.match(/^ +\d+\.\d s .*_test\.ts: one$/gm)?.length, 2);
    assertEquals(lines(stdout).at(-1), "4 passed, 0 failed, 0 skipped");
  },
});

Deno.test("deno task test rejects a path that does not exist", async () => {
  const args = await runner("", {}, "--filter", "x", "tests/none_test.ts");
  const { code, stderr } = await runProcess(Deno.execPath(), { args, env });
  assertEquals(code, 2);
  assertStringIncludes(stderr, "no such file or directory: tests/none_test.ts");
});

Deno.test({
  name: "deno task test does not wait for a process that a test leaves running",
  ...unix,
  async fn() {
    await using dir = await temporaryDir();
    const pid = join(dir.path, "pid");
    const leaves = `Deno.test("leaves a process", async () => {
      const command = new Deno.Command("sh", {
        args: ["-c", "sleep 600 & echo $! >'${pid}'"],
      });
      await command.spawn().status;
    });`;
    const args = await runner(dir.path, {
      "a_test.ts": leaves,
      "b_test.ts": "",
    });
    const { code, stdout } = await runProcess(Deno.execPath(), { args, env });
    Deno.kill(Number(await Deno.readTextFile(pid)), "SIGKILL");
    assertEquals(code, 0, stdout);
  },
});

for (const [signal, status] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
  Deno.test({
    name: `deno task test stops all files at ${signal} and reports that`,
    ...unix,
    async fn() {
      await using dir = await temporaryDir();
      const hangs = (name: string) =>
        `Deno.test("hangs", async () => {
          await Deno.writeTextFile("${
          join(dir.path, name)
        }.new", \`\${Deno.pid}\`);
          await Deno.rename("${join(dir.path, name)}.new", "${
          join(dir.path, name)
        }");
          await new Promise((end) => setTimeout(end, 600_000));
        });`;
      const files = { "a_test.ts": hangs("a"), "b_test.ts": hangs("b") };
      let printed = "";
      await using child = spawnProcess(Deno.execPath(), {
        args: await runner(dir.path, files),
        env,
        stdout: (chunk) => void (printed += new TextDecoder().decode(chunk)),
      });
      const pids = await Promise.all(
        ["a", "b"].map((name) => pidIn(dir.path, name)),
      );
      Deno.kill(child.pid, signal);
      assertEquals((await child.ended).code, status, printed);
      await Promise.all(pids.map(assertEnded));
      assertEquals(
        lines(printed).at(-1),
        `stopped by ${signal}: 0 of 2 files had ended`,
      );
    },
  });
}

/** Waits for a file with a process id. */
async function pidIn(dir: string, name: string): Promise<number> {
  const path = join(dir, name);
  for await (const _ of changes(dir)) {
    const text = await Deno.readTextFile(path).catch(() => "");
    if (text) return Number(text);
  }
  throw new Error(`There is no ${path}`);
}

/** Yields now, and after each change in a directory. */
async function* changes(dir: string) {
  using watcher = Deno.watchFs(dir);
  yield;
  for await (const _ of watcher) yield;
}
