/**
 * Where oras finds Docker's `config.json` in an environment without a home, such
 * as that of systemd's services. By itself, oras fails there.
 *
 * @module
 */
import { join, resolve } from "../path.ts";
import { ownUid } from "../system/ownership.ts";

const PASSWD = "/etc/passwd";
/** Debian's home of users without one. */
const NOWHERE = "/nonexistent";

/**
 * The variables that oras lacks, or would read from its own directory.
 *
 * Needs `--allow-env=HOME,DOCKER_CONFIG`, as oras may see what Deno may not; and
 * for the user's own directory `--allow-read=/etc/passwd` and `--allow-sys=uid`.
 *
 * @returns `DOCKER_CONFIG`: an absolute path of it if it is set, or the directory
 * that docker itself would take where neither it nor `HOME` is; else nothing.
 */
export async function orasConfigDir(): Promise<Record<string, string>> {
  // Windows has no services without USERPROFILE.
  if (Deno.build.os === "windows") return {};
  for (const variable of ["DOCKER_CONFIG", "HOME"]) {
    const asked = { name: "env", variable } as const;
    const { state } = await Deno.permissions.query(asked);
    if (state !== "granted") return {};
    const value = Deno.env.get(variable);
    if (value && variable === "HOME") return {};
    if (value) return { DOCKER_CONFIG: resolve(value) };
  }
  return { DOCKER_CONFIG: join(await passwdHome() || NOWHERE, ".docker") };
}

/** This user's home, as passwd(5) has it. */
async function passwdHome(): Promise<string | undefined> {
  const asked = { name: "read", path: PASSWD } as const;
  if ((await Deno.permissions.query(asked)).state !== "granted") return;
  const users = await Deno.readTextFile(PASSWD).catch(() => "");
  const uid = `${ownUid()}`;
  return users.split("\n").map((line) => line.split(":"))
    .find((fields) => fields[2] === uid)?.[5];
}
