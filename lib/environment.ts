/**
 * Environment variables behind an interface: callers and tests may pass a `Map`,
 * the default is the process's own environment.
 */

import { join } from "./path.ts";

/** A source of environment variables, such as `Deno.env` or a `Map`. */
export interface Environment {
  /** The value of a variable, or `undefined`. */
  get(name: string): string | undefined;
}

/**
 * The environment of this process. A variable that is empty, or that Deno may not
 * read, counts as unset; there is no permission prompt.
 */
export const processEnvironment: Environment = {
  get(name) {
    const descriptor = { name: "env", variable: name } as const;
    const { state } = Deno.permissions.querySync(descriptor);
    return state === "granted" ? Deno.env.get(name) || undefined : undefined;
  },
};

/**
 * Returns `$XDG_CACHE_HOME/toolsmith`, by default `~/.cache/toolsmith`; `undefined` if no
 * home directory is known.
 */
export function userCacheDir(env: Environment): string | undefined {
  // The XDG Base Directory Specification 0.8 says to ignore a relative path.
  const xdg = env.get("XDG_CACHE_HOME");
  const home = env.get(Deno.build.os === "windows" ? "USERPROFILE" : "HOME");
  const cache = xdg?.startsWith("/") ? xdg : home && join(home, ".cache");
  return cache && join(cache, "toolsmith");
}
