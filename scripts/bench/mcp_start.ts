/** Measures how soon `toolsmith mcp` answers a client's first request. */
import { runProcess, spawnProcess } from "../../lib/system/process.ts";
import {
  cleanEnvironment,
  cliCommand,
  workspace,
} from "../../tests/support/workspace.ts";
import { BUNDLE_PATH, writeBundle } from "../bundle.ts";
import { measureInTurns } from "./measure.ts";

const INITIALIZE = {
  jsonrpc: "2.0",
  id: 0,
  method: "initialize",
  params: {
    protocolVersion: "2025-11-25",
    capabilities: {},
    clientInfo: { name: "bench", version: "1.0.0" },
  },
};

/** Measures from the start of the process to the answer; no VM is started. */
export async function measureMcpStart() {
  await using work = await workspace();
  await work.manifest({ qcow2: "none.qcow2", qcow2_sha256: "0".repeat(64) });
  const empty = `${work.dir}/empty.ts`;
  await Deno.writeTextFile(empty, "");
  if (!await writeBundle()) throw new Error("cannot write the bundle");
  const options = { cwd: work.dir, env: cleanEnvironment() };
  const untilAnswer = (args: string[]) => async () => {
    const startedAt = performance.now();
    const answered = Promise.withResolvers<void>();
    const line = new TextEncoder().encode(`${JSON.stringify(INITIALIZE)}\n`);
    // Open until the answer, as the server ends with its input.
    const stream = new ReadableStream<Uint8Array>({
      async start(controller) {
        controller.enqueue(line);
        await answered.promise;
        controller.close();
      },
    });
    await using server = spawnProcess(Deno.execPath(), {
      ...options,
      args,
      input: { stream },
      stdout: () => answered.resolve(),
    });
    const ended = server.ended.then(({ code }) => {
      throw new Error(`toolsmith mcp ended with ${code}, without an answer`);
    });
    await Promise.race([answered.promise, ended]);
    return performance.now() - startedAt;
  };
  await measureInTurns(
    "the start of toolsmith mcp, until initialize is answered",
    [
      {
        name: "Deno with an empty program, to its end",
        async runOnce() {
          await runProcess(Deno.execPath(), {
            ...options,
            args: ["run", empty],
          });
        },
      },
      {
        name: "toolsmith mcp, the single file",
        runOnce: untilAnswer(["run", "-A", BUNDLE_PATH, "mcp"]),
      },
      {
        name: "toolsmith mcp, its modules",
        runOnce: untilAnswer(await cliCommand(["mcp"], ["-A"])),
      },
    ],
  );
}
