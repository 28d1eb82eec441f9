/**
 * Runs the programs that guests are built with.
 *
 * @module
 */
import { ToolsmithError } from "../../lib/errors.ts";
import { type Output, run, type RunOptions } from "../../lib/system/process.ts";

/**
 * Runs a program that must succeed. It is looked for where an ordinary user's
 * PATH does not lead, too.
 *
 * Needs `--allow-run` for it, `--allow-env=PATH`.
 *
 * @param program The program.
 * @param options Its arguments, its input.
 * @throws {ToolsmithError} `failed` with what it said, or what to install.
 */
export async function must(
  program: string,
  options: RunOptions,
): Promise<Output> {
  const output = await run(program, {
    ...options,
    env: { PATH: `${Deno.env.get("PATH")}:/usr/sbin:/sbin`, ...options.env },
  }).catch((cause) => {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new ToolsmithError("failed", `${program} not found`, {
      hint: "deno run -A scripts/setup.ts installs what is needed",
      cause,
    });
  });
  if (output.code === 0) return output;
  const said = output.stderr.trim().split("\n").at(-1);
  throw new ToolsmithError("failed", `${program} failed: ${said}`);
}
