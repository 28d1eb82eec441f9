/**
 * Starts Deno for every task and test and chooses the source of the standard library:
 * jsr.io, or npm if jsr.io is unreachable.
 *
 *     deno run -A scripts/deno.ts run -A cli.ts --help
 */
import { type ProcessExit, spawnProcess } from "../lib/system/process.ts";

export const PROJECT_ROOT = import.meta.dirname!.replace(/[/\\]scripts$/, "");

/** Set by the user, or for child processes. */
const IMPORTS_VARIABLE = "TOOLSMITH_DEV_IMPORTS";
const RESOLVING_SUBCOMMANDS = new Set(
  ["run", "test", "check", "bundle", "compile", "doc", "cache", "bench"],
);

/**
 * Adds the import map to Deno's arguments if jsr.io is unreachable.
 *
 * @param args A Deno subcommand and its arguments.
 * @returns The arguments to start Deno with.
 */
export async function withImportMap(args: string[]): Promise<string[]> {
  const [subcommand, ...rest] = args;
  if (!RESOLVING_SUBCOMMANDS.has(subcommand)) return args;
  const from = await findImportSource();
  if (from === "jsr") return args;
  const map = from === "npm"
    ? `${PROJECT_ROOT}/scripts/npm/import_map.json`
    : from;
  return [subcommand, `--import-map=${map}`, ...rest];
}

/**
 * Chooses the source of imports; probes jsr.io once per process tree.
 *
 * @returns `"jsr"`, `"npm"`, or the path of the import map in
 * `TOOLSMITH_DEV_IMPORTS`.
 */
export async function findImportSource(): Promise<string> {
  const chosen = Deno.env.get(IMPORTS_VARIABLE);
  if (chosen) return chosen;
  const registry = Deno.env.get("JSR_URL") ?? "https://jsr.io/";
  const found = await fetch(new URL("@std/path/meta.json", registry), {
    signal: AbortSignal.timeout(5000),
  }).then(async (response) => {
    await response.body?.cancel();
    return response.ok;
  }, () => false);
  if (!found) {
    console.error("jsr.io is unreachable: using @std from npm");
  }
  const choice = found ? "jsr" : "npm";
  Deno.env.set(IMPORTS_VARIABLE, choice);
  return choice;
}

/**
 * Makes child processes use an import map.
 *
 * @param path The map's path.
 */
export function setImportMap(path: string): void {
  Deno.env.set(IMPORTS_VARIABLE, path);
}

/** Runs Deno with inherited streams. */
export async function runDeno(...args: string[]): Promise<ProcessExit> {
  const child = spawnProcess(Deno.execPath(), {
    args: await withImportMap(args),
    input: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  });
  // Ctrl-C reaches the child directly; SIGTERM must be forwarded.
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
  Deno.exitCode = (await runDeno(...Deno.args)).code;
}
