/**
 * Looks for files that have another name in an export: who writes the one writes
 * the other.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { run } from "../system/process.ts";

/** What {@linkcode findHardLink} takes. */
export interface HardLinkOptions {
  /** Time that each search may take, in milliseconds. @default {30_000} */
  timeoutMs?: number;
  /** Ends the search when aborted. */
  signal?: AbortSignal;
}

/** A file, and the export that it has another name in. */
export interface HardLink {
  /** The export. */
  dir: string;
  /** The file's path outside of it. */
  file: string;
}

/** A command line has room for more, whatever the system. */
const MAX_TESTS = 100;
/** A regular file with several names. */
const LINKED = ["-type", "f", "-links", "+1"];

/**
 * Finds a file that an export has a hard link to. Exports are only searched if
 * some file has several names at all.
 *
 * Needs `--allow-run=sh`: the shell starts `find`, which also sees names that are
 * not UTF-8, and paths of any length.
 *
 * @param dirs The exports; what cannot be read in them is passed over.
 * @param paths Files, and directories of files. They need not exist.
 * @param options Limits.
 * @returns The first that was found; `undefined` where there is none.
 * @throws {ToolsmithError} `usage` when it takes too long.
 * @throws The signal's reason when it is aborted.
 */
export async function findHardLink(
  dirs: string[],
  paths: string[],
  options: HardLinkOptions = {},
): Promise<HardLink | undefined> {
  try {
    const listed = await find([...paths, ...LINKED, "-print0"], options);
    const files = await existing(listed.split("\0"));
    for (let from = 0; from < files.length; from += MAX_TESTS) {
      const tested = files.slice(from, from + MAX_TESTS);
      const tests = tested.flatMap((file, index) => [
        ...[index === 0 ? "(" : "-o", "-samefile", file],
        ...["-exec", "echo", `${index}`, ";"],
      ]);
      for (const dir of dirs) {
        const found = await find([dir, ...LINKED, ...tests, ")"], options);
        if (found) return { dir, file: tested[parseInt(found)] };
      }
    }
  } catch (cause) {
    options.signal?.throwIfAborted();
    if (!(cause instanceof ToolsmithError)) throw cause;
    throw new ToolsmithError(
      "usage",
      `Cannot export ${dirs.join(", ")}: cannot look for hard links there`,
      { hint: "export a directory with fewer files", cause },
    );
  }
}

async function find(
  args: string[],
  { timeoutMs = 30_000, signal }: HardLinkOptions,
): Promise<string> {
  const script = ["-c", 'exec find "$@"', "sh", ...args];
  return (await run("sh", { args: script, timeoutMs, signal })).stdout;
}

/** For a name that is not UTF-8, or a file that is gone, `find` would end. */
async function existing(paths: string[]): Promise<string[]> {
  const found = await Promise.all(
    paths.map((path) => Deno.lstat(path).catch(() => undefined)),
  );
  return paths.filter((_, index) => found[index]?.isFile);
}
