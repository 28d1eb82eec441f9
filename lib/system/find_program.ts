/** Finds programs on `PATH`. */
import { type Environment, processEnvironment } from "../environment.ts";
import { join, SEPARATOR } from "../path.ts";

/**
 * Returns the directories of `PATH`, which need not exist, in order; `""` is the
 * current directory.
 */
export function programSearchDirs(env: Environment = processEnvironment) {
  return (env.get("PATH") ?? processEnvironment.get("PATH") ?? "").split(":");
}

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
