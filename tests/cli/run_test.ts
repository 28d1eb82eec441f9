/**
 * `toolsmith run --execution host`, and what is refused before a machine starts.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { Environment } from "../../lib/environment.ts";
import { detachedVm } from "../support/detached_vm.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { perform, recordedIo } from "../support/io.ts";

const windows = Deno.build.os === "windows";
const HOST = new Map([["TOOLSMITH_EXECUTION", "host"]]);

/** Runs a command in a workspace whose image is nowhere. */
async function runCommand(
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
  const status = await perform(line, recorded);
  const types = recorded.events.map(({ type }) => type);
  return { ...recorded, status, types };
}

Deno.test({
  name:
    "run on the host ends with the command's status, and gives it what was asked for",
  ignore: windows,
  async fn() {
    const script = 'echo "$GREETING" "$1"; pwd; exit 3';
    const flags = ["--execution", "host", "--env", "GREETING=hi", "--cwd", "/"];
    const args = [...flags, "--json", "sh", "-c", script, "sh", "a b"];
    const { status, results, output, types, views, late } = await runCommand(
      args,
    );
    assertEquals([status, output()], [3, "hi a b\n/\n"]);
    const fields = { code: 3, signal: null };
    assertEquals(results, [{ json: true, fields, text: "" }]);
    assertEquals(types, ["command_dispatch", "command_end"]);
    assertEquals(late(), 0, "the view was closed too early");
    assertEquals(views.map(({ flags }) => flags.json), [true]);
  },
});

Deno.test({
  name:
    "run goes where the flag says, else the variable, and else into a machine",
  ignore: windows,
  async fn() {
    assertEquals((await runCommand(["true"], { env: HOST })).status, 0);
    // The image that a machine would need is not there.
    const inVm = (args: string[], env: Environment = new Map()) =>
      failure("source_not_found", () => runCommand([...args, "true"], { env }));
    await inVm([]);
    await inVm(["--execution", "vm"], HOST);
    await inVm([], new Map([["TOOLSMITH_EXECUTION", ""]]));
    const env = new Map([["TOOLSMITH_EXECUTION", "docker"]]);
    const error = await failure("usage", () => runCommand(["true"], { env }));
    assertEquals(error.message, 'TOOLSMITH_EXECUTION is "docker"');
    const args = ["--execution", "host", "true"];
    assertEquals((await runCommand(args, { env })).status, 0);
  },
});

Deno.test({
  name: "run on the host runs no tool that the manifest does not allow",
  ignore: windows,
  async fn() {
    const options = { env: HOST, operations: ["true"] };
    assertEquals((await runCommand(["true"], options)).status, 0);
    const words = ["sh", "-c", "exit 0"];
    await failure("tool_forbidden", () => runCommand(words, options));
    const lost = ["--manifest", "/none/tools.json"];
    const recorded = recordedIo({ env: HOST });
    await failure(
      "manifest_not_found",
      () => perform(["run", ...lost, "true"], recorded),
    );
  },
});

Deno.test({
  name: "run on the host ends at its time limit, and at Ctrl-C",
  ignore: windows,
  async fn() {
    const env = HOST;
    const late = ["--timeout", "0.05", "sleep", "600"];
    await failure("timeout", () => runCommand(late, { env }));
    const stop = new AbortController();
    const running = runCommand(["sleep", "600"], { env, signal: stop.signal });
    stop.abort(new DOMException("Ctrl-C", "AbortError"));
    const error = await running.catch((error) => error);
    assertEquals(error, stop.signal.reason);
  },
});

Deno.test({
  name: "run in the detached VM ends with the command's status",
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
    assertEquals([await perform(args, run), run.late()], [0, 0]);
    const [{ json, fields, text }] = run.results;
    const { code, signal } = fields;
    assertEquals([json, code, signal, text], [true, 0, null, ""]);
  },
});

Deno.test("run --tty needs a terminal, and goes with no --json", async () => {
  const { isTerminal } = Deno.stdin;
  try {
    Deno.stdin.isTerminal = () => false;
    const tty = await failure("usage", () => runCommand(["--tty", "sh"]));
    assertEquals(tty.message, "run --tty needs a terminal");
    const host = ["--tty", "--execution", "host", "sh"];
    await failure("usage", () => runCommand(host));
    const json = ["--tty", "--json", "sh"];
    const error = await failure("usage", () => runCommand(json));
    assert(error.message.includes("no JSON"), error.message);
  } finally {
    Deno.stdin.isTerminal = isTerminal;
  }
});

Deno.test({
  name: "run --tty on the host needs no guest's terminal",
  ignore: windows,
  async fn() {
    const undo = [Deno.stdin, Deno.stdout].map((stream) => {
      const { isTerminal } = stream;
      stream.isTerminal = () => true;
      return () => stream.isTerminal = isTerminal;
    });
    try {
      const { status } = await runCommand(["--tty", "true"], { env: HOST });
      assertEquals(status, 0);
    } finally {
      undo.forEach((step) => step());
    }
  },
});
