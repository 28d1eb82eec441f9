/**
 * The files of this host that decide how registries are reached.
 *
 * @module
 */
import { type Environment, processEnvironment } from "../environment.ts";
import { findProgram } from "../system/find_program.ts";
import { credentialHelpers, dockerDir } from "./_docker_config.ts";
import { mirrorDirs } from "./mirrors.ts";

/**
 * Names what decides where images come from, and who gets credentials: Docker's
 * directory, the credential helpers that its configuration names, and the
 * configuration of mirrors.
 *
 * Needs `--allow-read` for all of it.
 *
 * @param env Read for `DOCKER_CONFIG`, `HOME`, `PATH` and
 * `TOOLSMITH_REGISTRY_CONFIG`.
 * @returns Files and directories, which need not exist.
 */
export async function registryFiles(
  env: Environment = processEnvironment,
): Promise<string[]> {
  // oras is a process of its own: it has the variables of this one.
  const both: Environment = {
    get: (name) => env.get(name) ?? processEnvironment.get(name),
  };
  const helpers = await credentialHelpers(both);
  const found = [
    dockerDir(both),
    ...mirrorDirs(both),
    ...await Promise.all(helpers.map((name) => findProgram(name, both))),
  ];
  return found.filter((path) => path !== undefined);
}
