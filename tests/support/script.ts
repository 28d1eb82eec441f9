/** Runs a test's TypeScript code in a separate process. */
import { type RunningProcess, spawnProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";

export interface RunningScript {
  /** Its process. */
  child: RunningProcess;
  /** Waits until it has printed this line. */
  prints(line: string): Promise<void>;
  /** Its output so far, errors included. */
  printedText(): string;
}

export interface ScriptOptions {
  /** Its arguments. @default {[]} */
  args?: string[];
  /** Deno's permission flags. @default {["-A"]} */
  permissions?: string[];
  /** An import map instead of the default one. */
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
  const lib = new URL(`file://${PROJECT_ROOT}/lib/`).href;
  await Deno.writeTextFile(path, code.replaceAll('"/lib/', `"${lib}`));
  const config = `--config=${PROJECT_ROOT}/deno.json`;
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
    : await withImportMap(["run", ...rest]);
}

/**
 * Starts a script, as {@linkcode scriptCommand} writes it.
 *
 * @returns The running script.
 */
export async function startScript(
  ...script: Parameters<typeof scriptCommand>
): Promise<RunningScript> {
  const decoder = new TextDecoder();
  const waiting = new Map<string, () => void>();
  let text = "";
  const hear = (chunk: Uint8Array) => {
    text += decoder.decode(chunk, { stream: true });
    for (const line of text.split("\n").slice(0, -1)) waiting.get(line)?.();
  };
  const child = spawnProcess(Deno.execPath(), {
    args: await scriptCommand(...script),
    env: { NO_COLOR: "1" },
    stdout: hear,
    stderr: hear,
  });
  return {
    child,
    printedText: () => text,
    prints(line) {
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
  if (code === 0) return script.printedText();
  throw new Error(`The script failed:\n${script.printedText()}`);
}
