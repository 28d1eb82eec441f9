/**
 * The files that this program consists of: whoever writes one decides what its
 * next start runs.
 *
 * @module
 */
import { processEnvironment } from "../environment.ts";
import { fromFileUrl, join } from "../path.ts";

/** This file, below the directory of the modules; not so in a bundle. */
const SELF = "lib/system/own_files.ts";
/** What is beside `lib/`, and read or run at a start. */
const BESIDE = ["mod.ts", "cli.ts", "deno.json", "deno.lock"];

/** Where modules came from. */
export interface ModuleAddresses {
  /** The module that was started. @default {Deno.mainModule} */
  main?: string;
  /** This module. @default {import.meta.url} */
  self?: string;
}

/**
 * Names the files of this program: Deno or the compiled program, the module that
 * was started, and Toolsmith's own modules or the single file that holds them.
 *
 * Needs `--allow-read` for all of them.
 *
 * @param addresses Of the modules.
 * @returns Files, and the directory `lib/`.
 */
export function ownFiles(
  { main = Deno.mainModule, self = import.meta.url }: ModuleAddresses = {},
): string[] {
  const found = [Deno.execPath()];
  for (const url of [main, self]) {
    // What comes over HTTPS is in Deno's cache.
    if (!url.startsWith("file:")) continue;
    const path = fromFileUrl(url);
    if (!url.endsWith(`/${SELF}`)) found.push(path);
    else {
      const root = path.slice(0, -SELF.length);
      found.push(...[...BESIDE, "lib"].map((name) => join(root, name)));
    }
  }
  return found;
}

/**
 * Names the directory in which Deno keeps modules and compiled code.
 *
 * Needs `--allow-env=DENO_DIR,XDG_CACHE_HOME,HOME`.
 *
 * @returns The directory, which need not exist; `undefined` without a home.
 */
export function denoCacheDir(): string | undefined {
  const env = processEnvironment;
  const home = env.get("HOME");
  const caches = Deno.build.os === "darwin"
    ? home && join(home, "Library", "Caches")
    : env.get("XDG_CACHE_HOME") || home && join(home, ".cache");
  return env.get("DENO_DIR") || caches && join(caches, "deno");
}
