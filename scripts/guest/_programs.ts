/** Runs the programs that guests are built with. */
import { ToolsmithError } from "../../lib/errors.ts";
import {
  type ProcessResult,
  runProcess,
  type RunProcessOptions,
} from "../../lib/system/process.ts";

/**
 * Runs a program and throws if it fails. Also searches the sbin directories, which
 * are not on an ordinary user's PATH.
 *
 * Needs `--allow-run` for it, `--allow-env=PATH`.
 *
 * @param program The program.
 * @param options Its arguments, its input.
 * @throws {ToolsmithError} `failed` with the program's error, or what to install.
 */
export async function runOrThrow(
  program: string,
  options: RunProcessOptions,
): Promise<ProcessResult> {
  const output = await runProcess(program, {
    ...options,
    env: { PATH: `${Deno.env.get("PATH")}:/usr/sbin:/sbin`, ...options.env },
  }).catch((cause) => {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new ToolsmithError("failed", `${program} not found`, {
      hint: "install the missing programs: deno run -A scripts/setup.ts",
      cause,
    });
  });
  if (output.code === 0) return output;
  const said = output.stderr.trim().split("\n").at(-1);
  throw new ToolsmithError("failed", `${program} failed: ${said}`);
}
