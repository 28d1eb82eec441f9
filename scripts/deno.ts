/**
 * Starts Deno for every task and test, so that where the imports come from is
 * chosen in one place: jsr.io, or npm where jsr.io cannot be reached.
 *
 *     deno run -A scripts/deno.ts run -A cli.ts --help
 *
 * @module
 */
import { type ProcessExit, spawn } from "../lib/system/process.ts";

/** The repository's root. */
export const ROOT = import.meta.dirname!.replace(/[/\\]scripts$/, "");

/** Set by hand, or for child processes. */
const CHOICE = "TOOLSMITH_DEV_IMPORTS";
const RESOLVING = new Set(
  ["run", "test", "check", "bundle", "compile", "doc", "cache", "bench"],
);

/**
 * The arguments that make Deno resolve this project's imports here.
 *
 * @param args A Deno subcommand and what follows it.
 * @returns The same, with an import map where jsr.io cannot be reached.
 */
export async function denoArgs(args: string[]): Promise<string[]> {
  const [subcommand, ...rest] = args;
  if (!RESOLVING.has(subcommand)) return args;
  const from = await importsFrom();
  if (from === "jsr") return args;
  const map = from === "npm" ? `${ROOT}/scripts/npm/import_map.json` : from;
  return [subcommand, `--import-map=${map}`, ...rest];
}

/**
 * Says where the imports come from; asks jsr.io once a process tree.
 *
 * @returns `"jsr"`, `"npm"`, or the path of an import map that
 * `TOOLSMITH_DEV_IMPORTS` names.
 */
export async function importsFrom(): Promise<string> {
  const chosen = Deno.env.get(CHOICE);
  if (chosen) return chosen;
  const registry = Deno.env.get("JSR_URL") ?? "https://jsr.io/";
  const found = await fetch(new URL("@std/path/meta.json", registry), {
    signal: AbortSignal.timeout(5000),
  }).then(async (response) => {
    await response.body?.cancel();
    return response.ok;
  }, () => false);
  if (!found) {
    console.error("jsr.io cannot be reached: taking @std from npm instead");
  }
  const choice = found ? "jsr" : "npm";
  Deno.env.set(CHOICE, choice);
  return choice;
}

/**
 * Makes every Deno that this one starts take its imports from a map.
 *
 * @param path The map.
 */
export function useImportMap(path: string): void {
  Deno.env.set(CHOICE, path);
}

/** Runs Deno on this terminal and returns how it ended. */
export async function deno(...args: string[]): Promise<ProcessExit> {
  const child = spawn(Deno.execPath(), {
    args: await denoArgs(args),
    input: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  });
  // Ctrl-C reaches the child by itself; TERM must be handed on.
  const stop = () => child.stop();
  const ignore = () => {};
  Deno.addSignalListener("SIGTERM", stop);
  Deno.addSignalListener("SIGINT", ignore);
  const ended = await child.ended;
  Deno.removeSignalListener("SIGTERM", stop);
  Deno.removeSignalListener("SIGINT", ignore);
  return ended;
}

if (import.meta.main) {
  Deno.exitCode = (await deno(...Deno.args)).code;
}
