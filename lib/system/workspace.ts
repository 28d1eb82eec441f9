/**
 * Workspaces: directories with a `.toolsmith/`, which may come with somebody
 * else's repository.
 *
 * @module
 */
import { basename, dirname } from "../path.ts";
import { whyLinked } from "./ownership.ts";

const DIR = ".toolsmith";

/**
 * The workspace that a file belongs to.
 *
 * @param file Absolute path of the file.
 * @returns The directory that holds `.toolsmith/`, or the file's own directory.
 */
export function workspaceRoot(file: string): string {
  const dir = dirname(file);
  return basename(dir) === DIR ? dirname(dir) : dir;
}

/**
 * Says why a file or directory in `.toolsmith/` is not to be used: either of the
 * two is a symbolic link, which would lead out of the workspace.
 *
 * Needs `--allow-read` for both.
 *
 * @param path Absolute path of the file or directory. Outside of a `.toolsmith/`
 * the user named it, and may have made a link.
 * @returns Why not, with the path of the link; `undefined` if it can be used.
 */
export async function whyOutside(path: string): Promise<string | undefined> {
  const root = workspaceRoot(path);
  return root === dirname(path) ? undefined : await whyLinked(path, root);
}
