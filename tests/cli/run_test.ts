/**
 * Tests `toolsmith run --execution host`, and errors before a VM starts.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { Environment } from "../../lib/environment.ts";
import { detachedVm } from "../support/detached_vm.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { performCommand, recordedIo } from "../support/recorded_io.ts";

const windows = Deno.build.os === "windows";
const HOST = new Map([["TOOLSMITH_EXECUTION", "host"]]);

/** Runs `toolsmith run` in a workspace whose image does not exist. */
async function performRun(
  args: string[],
  options: {
    env?: Environment;
    signal?: AbortSignal;
    operations?: string[];
  } = {},
) {
  await using dir = await temporaryDir();
  const { operations = [], ...io } = options;
  const manifest = join(dir.path, "tools.json");
  const image = { name: "demo", qcow2: "x", qcow2_sha256: "a".repeat(64) };
  await Deno.writeTextFile(manifest, JSON.stringify({ image, operations }));
  const recorded = recordedIo(io);
  const line = ["run", "--manifest", manifest, ...args];
  const status = await performCommand(line, recorded);
  const types = recorded.events.map(({ type }) => type);
  return { ...recorded, status, types };
}

Deno.test({
  name:
    "run --execution host returns the command's exit status and passes directory, variables and arguments",
  ignore: windows,
  async fn() {
    const script = 'echo "$GREETING" "$1"; pwd; exit 3';
    const flags = ["--execution", "host", "--env", "GREETING=hi", "--cwd", "/"];
    const args = [...flags, "--json", "sh", "-c", script, "sh", "a b"];
    const { status, results, output, types, eventsAfterResult } =
      await performRun(args);
    assertEquals([status, output()], [3, "hi a b\n/\n"]);
    const fields = { code: 3, signal: null };
    assertEquals(results, [{ json: true, fields, text: "" }]);
    assertEquals(types, ["command_dispatch", "command_end"]);
    assertEquals(eventsAfterResult(), 0, "the result is not last");
  },
});

Deno.test({
  name:
    "run chooses the VM or the host by --execution, then TOOLSMITH_EXECUTION, then the VM",
  ignore: windows,
  async fn() {
    assertEquals((await performRun(["true"], { env: HOST })).status, 0);
    // In the VM it fails, as the image does not exist.
    const inVm = (args: string[], env: Environment = new Map()) =>
      expectFailure(
        "source_not_found",
        () => performRun([...args, "true"], { env }),
      );
    await inVm([]);
    await inVm(["--execution", "vm"], HOST);
    await inVm([], new Map([["TOOLSMITH_EXECUTION", ""]]));
    const env = new Map([["TOOLSMITH_EXECUTION", "docker"]]);
    const error = await expectFailure(
      "usage",
      () => performRun(["true"], { env }),
    );
    assertEquals(
      error.message,
      'TOOLSMITH_EXECUTION does not accept "docker"',
    );
    assertEquals(error.hint, "use one of: vm, host");
    const args = ["--execution", "host", "true"];
    assertEquals((await performRun(args, { env })).status, 0);
  },
});

Deno.test({
  name: "run --execution host rejects a tool that the manifest does not allow",
  ignore: windows,
  async fn() {
    const options = { env: HOST, operations: ["true"] };
    assertEquals((await performRun(["true"], options)).status, 0);
    const words = ["sh", "-c", "exit 0"];
    await expectFailure("tool_forbidden", () => performRun(words, options));
    const lost = ["--manifest", "/none/tools.json"];
    const recorded = recordedIo({ env: HOST });
    await expectFailure(
      "manifest_not_found",
      () => performCommand(["run", ...lost, "true"], recorded),
    );
  },
});

Deno.test({
  name: "run --execution host stops at --timeout and at Ctrl-C",
  ignore: windows,
  async fn() {
    const env = HOST;
    const late = ["--timeout", "0.05", "sleep", "600"];
    await expectFailure("timeout", () => performRun(late, { env }));
    const stop = new AbortController();
    const running = performRun(["sleep", "600"], { env, signal: stop.signal });
    stop.abort(new DOMException("Ctrl-C", "AbortError"));
    const error = await running.catch((error) => error);
    assertEquals(error, stop.signal.reason);
  },
});

Deno.test({
  name: "run in the detached VM returns the command's exit status",
  ignore: windows,
  async fn() {
    await using dir = await temporaryDir();
    const digest = "a".repeat(64);
    await Deno.mkdir(join(dir.path, ".toolsmith"));
    const manifest = join(dir.path, ".toolsmith", "tools.json");
    const image = { name: "demo", qcow2: "x", qcow2_sha256: digest };
    await Deno.writeTextFile(manifest, JSON.stringify({ image }));
    await using _vm = await detachedVm(dir.path, `sha256:${digest}`);
    const named = ["--manifest", manifest];
    const run = recordedIo();
    const args = ["run", ...named, "--json", "true"];
    assertEquals([await performCommand(args, run), run.eventsAfterResult()], [
      0,
      0,
    ]);
    const [{ json, fields, text }] = run.results;
    const { code, signal } = fields;
    assertEquals([json, code, signal, text], [true, 0, null, ""]);
  },
});

Deno.test("run --tty needs a terminal and rejects --json", async () => {
  const { isTerminal } = Deno.stdin;
  try {
    Deno.stdin.isTerminal = () => false;
    const tty = await expectFailure("usage", () => performRun(["--tty", "sh"]));
    assertEquals(
      tty.message,
      "run --tty needs a terminal on standard input and output",
    );
    const host = ["--tty", "--execution", "host", "sh"];
    await expectFailure("usage", () => performRun(host));
    const json = ["--tty", "--json", "sh"];
    const error = await expectFailure("usage", () => performRun(json));
    assert(error.message.includes("--tty and --json"), error.message);
  } finally {
    Deno.stdin.isTerminal = isTerminal;
  }
});

Deno.test({
  name: "run --tty --execution host runs the command on the host",
  ignore: windows,
  async fn() {
    const undo = [Deno.stdin, Deno.stdout].map((stream) => {
      const { isTerminal } = stream;
      stream.isTerminal = () => true;
      return () => stream.isTerminal = isTerminal;
    });
    try {
      const { status } = await performRun(["--tty", "true"], { env: HOST });
      assertEquals(status, 0);
    } finally {
      undo.forEach((step) => step());
    }
  },
});
