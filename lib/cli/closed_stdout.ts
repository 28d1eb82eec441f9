/**
 * Standard output that whoever started this process has closed, as `>&-` does.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { basename } from "../path.ts";

const O_ACCMODE = 0o3;
const O_RDWR = 0o2;
const NULL = "/dev/null";
const SHELL = /^(?:ash|bash|busybox|dash|fish|ksh\d*|mksh|sh|zsh)\b/;

/** What is written to a standard output that is closed. */
export const CLOSED_STDOUT = {
  write: (): Promise<number> =>
    Promise.reject(
      new ToolsmithError(
        "file_unreadable",
        "Cannot write to standard output: it is closed",
        { hint: "redirect it to a file, or to /dev/null" },
      ),
    ),
};

/**
 * Tells whether standard output was closed when this process started. Before any
 * of this program runs, Deno has opened /dev/null in its place, for reading and
 * writing, so that no other file gets its number (Rust,
 * `std::sys::pal::unix::init`).
 *
 * Python and Node.js start programs on such a /dev/null as well, for output that
 * is not wanted. A shell does not: its `>/dev/null` is for writing alone. So it
 * counts as closed where a shell started this process, and has another output.
 *
 * Needs `--allow-all`, on Linux; else nothing is known.
 *
 * @returns Whether it was closed, as far as that is known.
 */
export function isStdoutClosed(): boolean {
  if (Deno.build.os !== "linux") return false;
  try {
    if (Deno.readLinkSync("/proc/self/fd/1") !== NULL) return false;
    const info = Deno.readTextFileSync("/proc/self/fdinfo/1");
    const [, flags] = /^flags:\s*([0-7]+)$/m.exec(info)!;
    if ((parseInt(flags, 8) & O_ACCMODE) !== O_RDWR) return false;
    const parent = `/proc/${Deno.ppid}`;
    return SHELL.test(basename(Deno.readLinkSync(`${parent}/exe`))) &&
      linkOf(`${parent}/fd/1`) !== NULL;
  } catch {
    return false;
  }
}

/** Where a link leads; `undefined` where there is none. */
function linkOf(path: string): string | undefined {
  try {
    return Deno.readLinkSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
