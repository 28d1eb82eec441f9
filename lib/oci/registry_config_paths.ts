/** Lists the files of this host that configure the access to registries. */
import { type Environment, processEnvironment } from "../environment.ts";
import { findProgram } from "../system/find_program.ts";
import { dockerConfigDir, listCredentialHelpers } from "./_docker_config.ts";
import { mirrorConfigDirs } from "./mirrors.ts";

/**
 * Returns the paths that decide where images come from and who gets credentials:
 * Docker's configuration directory, its credential helpers, and the directories of
 * mirror settings. They may not exist.
 */
export async function registryConfigPaths(
  env: Environment = processEnvironment,
): Promise<string[]> {
  // oras inherits the variables of this process.
  const both: Environment = {
    get: (name) => env.get(name) ?? processEnvironment.get(name),
  };
  const helpers = await listCredentialHelpers(both);
  const found = [
    await dockerConfigDir(both),
    ...mirrorConfigDirs(both),
    ...await Promise.all(helpers.map((name) => findProgram(name, both))),
  ];
  return found.filter((path) => path !== undefined);
}
