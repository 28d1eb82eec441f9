/**
 * Finds programs on `PATH`.
 *
 * @module
 */
import { join, SEPARATOR } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";

/**
 * Returns the directories of `PATH`, in order.
 *
 * @param env Read for `PATH`.
 * @returns The directories, which need not exist; `""` is the current directory.
 */
export function programSearchDirs(
  env: Environment = processEnvironment,
): string[] {
  return (env.get("PATH") ?? processEnvironment.get("PATH") ?? "").split(":");
}

/**
 * Finds a program by name or path.
 *
 * Needs `--allow-read` for the directories of `PATH`.
 *
 * @param env Read for `PATH`.
 * @returns The program's path; `undefined` if it does not exist.
 */
export async function findProgram(
  program: string,
  env: Environment = processEnvironment,
): Promise<string | undefined> {
  const dirs = program.includes(SEPARATOR) ? [""] : programSearchDirs(env);
  for (const dir of dirs) {
    const path = dir ? join(dir, program) : program;
    if (await Deno.stat(path).then(({ isFile }) => isFile, () => false)) {
      return path;
    }
  }
  return undefined;
}
