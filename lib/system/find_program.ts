/**
 * Finds the files of programs.
 *
 * @module
 */
import { join, SEPARATOR } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";

/**
 * Names the directories in which programs are looked up, in that order.
 *
 * @param env Read for `PATH`.
 * @returns The directories, which need not exist; `""` is the current one.
 */
export function programDirs(env: Environment = processEnvironment): string[] {
  return (env.get("PATH") ?? processEnvironment.get("PATH") ?? "").split(":");
}

/**
 * Finds the file of a program.
 *
 * Needs `--allow-read` for it, and for the directories of PATH.
 *
 * @param program Its name or path.
 * @param env Read for `PATH`.
 * @returns Its path; `undefined` where it does not exist.
 */
export async function findProgram(
  program: string,
  env: Environment = processEnvironment,
): Promise<string | undefined> {
  const dirs = program.includes(SEPARATOR) ? [""] : programDirs(env);
  for (const dir of dirs) {
    const path = dir ? join(dir, program) : program;
    if (await Deno.stat(path).then(({ isFile }) => isFile, () => false)) {
      return path;
    }
  }
  return undefined;
}
