/**
 * Lists Toolsmith's own program files, and finds the directories of caches. A guest that
 * could write a program file could run code on the host at the next start.
 */
import { type Environment, processEnvironment } from "../environment.ts";
import { fromFileUrl, join } from "../path.ts";

/** Path of this module in the source tree; a bundle has another path. */
const THIS_MODULE_PATH = "lib/system/program_files.ts";
/** What Deno reads or runs at start, in the directory of the source tree. */
const SOURCE_FILES = ["mod.ts", "cli.ts", "deno.json", "deno.lock", "lib"];

/**
 * Lists Deno or the compiled program, the main module, and Toolsmith's modules (with
 * the directory `lib/`) or their bundle.
 */
export function listProgramFiles(
  { main = Deno.mainModule, self = import.meta.url } = {},
): string[] {
  const found = [Deno.execPath()];
  for (const url of [main, self]) {
    // Modules loaded over HTTPS are in Deno's cache.
    if (!url.startsWith("file:")) continue;
    const path = fromFileUrl(url);
    if (!url.endsWith(`/${THIS_MODULE_PATH}`)) found.push(path);
    else {
      const root = path.slice(0, -THIS_MODULE_PATH.length);
      found.push(...SOURCE_FILES.map((name) => join(root, name)));
    }
  }
  return found;
}

export function denoCacheDir(): string | undefined {
  const env = processEnvironment;
  const home = env.get("HOME");
  const caches = Deno.build.os === "darwin"
    ? home && join(home, "Library", "Caches")
    : env.get("XDG_CACHE_HOME") || home && join(home, ".cache");
  return env.get("DENO_DIR") || caches && join(caches, "deno");
}

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
