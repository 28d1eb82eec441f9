/** Measures how long the single file takes to start. */
import { runOrThrow } from "../guest/_programs.ts";
import { cleanEnvironment } from "../../tests/support/workspace.ts";
import { BUNDLE_PATH, writeBundle } from "../bundle.ts";
import { measureInTurns } from "./measure.ts";

/** The arguments of commands that only print. */
const COMMANDS = [["--version"], ["--help"], ["init", "--help"]];

/** Measures whole processes, beside Deno's own start. */
export async function measureStart() {
  if (!await writeBundle()) throw new Error("cannot write the bundle");
  const env = cleanEnvironment();
  const run = (args: string[]) => async () => {
    await runOrThrow(Deno.execPath(), { args, env });
  };
  await measureInTurns("the start of the single file", [
    { name: "deno eval 0", runOnce: run(["eval", "0"]) },
    ...COMMANDS.map((words) => ({
      name: `toolsmith ${words.join(" ")}`,
      runOnce: run(["run", "-A", BUNDLE_PATH, ...words]),
    })),
  ]);
}
