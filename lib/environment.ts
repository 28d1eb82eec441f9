/**
 * The environment variables that Toolsmith reads, behind a port: a caller or a
 * test passes a `Map`, everybody else gets the process's own.
 *
 * @module
 */

import { join } from "./path.ts";

/** Where variables are read from; `Deno.env` and a `Map` both fit. */
export interface Environment {
  /** The value of a variable, or `undefined`. */
  get(name: string): string | undefined;
}

/**
 * The environment of this process. A variable that is empty, or that Deno may
 * not read, counts as not set; nobody is asked for the permission.
 *
 * Needs `--allow-env` for the variables that are to be seen.
 */
export const processEnvironment: Environment = {
  get(name) {
    const descriptor = { name: "env", variable: name } as const;
    const { state } = Deno.permissions.querySync(descriptor);
    return state === "granted" ? Deno.env.get(name) || undefined : undefined;
  },
};

/**
 * Where this user's Toolsmith keeps what can be made again.
 *
 * @param env Read for `XDG_CACHE_HOME`, and `HOME` or `USERPROFILE`.
 * @returns `$XDG_CACHE_HOME/toolsmith`, by default `~/.cache/toolsmith`;
 * `undefined` where no home is known.
 */
export function userCacheDir(env: Environment): string | undefined {
  // A relative one is to be ignored (XDG Base Directory Specification 0.8).
  const xdg = env.get("XDG_CACHE_HOME");
  const home = env.get(Deno.build.os === "windows" ? "USERPROFILE" : "HOME");
  const cache = xdg?.startsWith("/") ? xdg : home && join(home, ".cache");
  return cache && join(cache, "toolsmith");
}
