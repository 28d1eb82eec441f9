/**
 * Workspaces: directories with a `.toolsmith/`, which may come from an untrusted
 * repository.
 */
import { basename, dirname } from "../path.ts";
import { symlinkEscapeReason } from "./ownership.ts";

const TOOLSMITH_DIR_NAME = ".toolsmith";

/** Returns the parent of a file's `.toolsmith/`, or else the file's directory. */
export function workspaceOf(file: string): string {
  const dir = dirname(file);
  return basename(dir) === TOOLSMITH_DIR_NAME ? dirname(dir) : dir;
}

/**
 * Returns why a path in `.toolsmith/` is refused: the path or `.toolsmith/` is a
 * symbolic link, which may lead out of the workspace. Links outside of `.toolsmith/`
 * are allowed, because the user named the path, which must be absolute.
 */
export async function workspaceSymlinkReason(
  path: string,
): Promise<string | undefined> {
  const root = workspaceOf(path);
  return root === dirname(path)
    ? undefined
    : await symlinkEscapeReason(path, root);
}
