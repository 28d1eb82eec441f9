/**
 * Finds host files with a hard link in an export: the guest could write to them.
 */
import { ToolsmithError } from "../errors.ts";
import { runProcess } from "../system/process.ts";

/** A host file and the export with a hard link to it. */
export interface HardLink {
  exportDir: string;
  /** The file's path outside the export. */
  file: string;
}

const SEARCH_TIMEOUT_MS = 30_000;
/** Every system allows command lines of this length. */
const MAX_FILES_PER_FIND = 100;
/** Tests of `find` for a regular file with several hard links. */
const SEVERAL_LINKS_ARGS = ["-type", "f", "-links", "+1"];

/**
 * Finds a file or directory of `paths`, which need not exist, that an export has a hard
 * link to. Exports are only searched if any of the files has several links; unreadable
 * directories in them are skipped. The search runs `find` in a shell, which handles
 * names that are not UTF-8 and paths of any length.
 */
export async function findHardLink(
  dirs: string[],
  paths: string[],
  { signal }: { signal?: AbortSignal } = {},
): Promise<HardLink | undefined> {
  try {
    const args = [...paths, ...SEVERAL_LINKS_ARGS, "-print0"];
    const listed = await runFind(args, signal);
    const files = await existingFiles(listed.split("\0"));
    for (let from = 0; from < files.length; from += MAX_FILES_PER_FIND) {
      const tested = files.slice(from, from + MAX_FILES_PER_FIND);
      const tests = tested.flatMap((file, index) => [
        ...[index === 0 ? "(" : "-o", "-samefile", file],
        ...["-exec", "echo", `${index}`, ";"],
      ]);
      for (const dir of dirs) {
        const args = [dir, ...SEVERAL_LINKS_ARGS, ...tests, ")"];
        const found = await runFind(args, signal);
        if (found) return { exportDir: dir, file: tested[parseInt(found)] };
      }
    }
  } catch (cause) {
    signal?.throwIfAborted();
    if (!(cause instanceof ToolsmithError)) throw cause;
    throw new ToolsmithError(
      "usage",
      `Cannot export ${dirs.join(", ")}: the search for hard links failed`,
      { hint: "export a directory with fewer files", cause },
    );
  }
}

async function runFind(args: string[], signal?: AbortSignal): Promise<string> {
  const script = ["-c", 'exec find "$@"', "sh", ...args];
  const how = { args: script, timeoutMs: SEARCH_TIMEOUT_MS, signal };
  return (await runProcess("sh", how)).stdout;
}

/** Drops missing files and names that are not UTF-8, as `find -samefile` fails on them. */
async function existingFiles(paths: string[]): Promise<string[]> {
  const found = await Promise.all(
    paths.map((path) => Deno.lstat(path).catch(() => undefined)),
  );
  return paths.filter((_, index) => found[index]?.isFile);
}
