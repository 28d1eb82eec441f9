/**
 * Runs TypeScript of a test in a process of its own.
 *
 * @module
 */
import { type Child, spawn } from "../../lib/system/process.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";

/** A script that runs. */
export interface Script {
  /** Its process. */
  child: Child;
  /** Waits until it has printed a line like this. */
  says(line: string): Promise<void>;
  /** What it has printed so far, errors included. */
  said(): string;
}

/** What a script is given. */
export interface ScriptOptions {
  /** Its arguments. @default {[]} */
  args?: string[];
  /** What it may do. @default {["-A"]} */
  permissions?: string[];
  /** An import map in place of the usual one. */
  importMap?: string;
}

/**
 * Writes a script. Its imports are those of the project: `/lib/x.ts` in a
 * specifier is the project's.
 *
 * @param path Where to write it.
 * @param code TypeScript.
 * @param options Arguments of the script, and permissions.
 * @returns The arguments that make Deno run it.
 */
export async function scriptCommand(
  path: string,
  code: string,
  options: ScriptOptions = {},
): Promise<string[]> {
  const { args = [], permissions = ["-A"], importMap } = options;
  const lib = new URL(`file://${ROOT}/lib/`).href;
  await Deno.writeTextFile(path, code.replaceAll('"/lib/', `"${lib}`));
  const config = `--config=${ROOT}/deno.json`;
  const rest = [
    "--quiet",
    "--no-prompt",
    config,
    ...permissions,
    path,
    ...args,
  ];
  return importMap
    ? ["run", `--import-map=${importMap}`, ...rest]
    : await denoArgs(["run", ...rest]);
}

/**
 * Starts a script, as {@linkcode scriptCommand} writes it.
 *
 * @returns The running script.
 */
export async function startScript(
  ...script: Parameters<typeof scriptCommand>
): Promise<Script> {
  const decoder = new TextDecoder();
  const waiting = new Map<string, () => void>();
  let text = "";
  const hear = (chunk: Uint8Array) => {
    text += decoder.decode(chunk, { stream: true });
    for (const line of text.split("\n").slice(0, -1)) waiting.get(line)?.();
  };
  const child = spawn(Deno.execPath(), {
    args: await scriptCommand(...script),
    env: { NO_COLOR: "1" },
    stdout: hear,
    stderr: hear,
  });
  return {
    child,
    said: () => text,
    says(line) {
      const said = new Promise<void>((done) => waiting.set(line, done));
      hear(new Uint8Array());
      const ended = child.ended.then(() => {
        throw new Error(`The script ended before it said "${line}":\n${text}`);
      });
      return Promise.race([said, ended]);
    },
  };
}

/** Runs a script to its end, and returns what it printed. */
export async function runScript(
  ...args: Parameters<typeof scriptCommand>
): Promise<string> {
  const script = await startScript(...args);
  const { code } = await script.child.ended;
  if (code === 0) return script.said();
  throw new Error(`The script failed:\n${script.said()}`);
}
