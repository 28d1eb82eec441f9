/**
 * Trust checks by file owner and mode, also of a workspace's `.toolsmith/`: on a host with
 * several users, a file that another user may have written is untrusted.
 */
import {
  basename,
  dirname,
  isAbsolute,
  join,
  relative,
  resolve,
  SEPARATOR,
} from "../path.ts";
import { orIfDenied, orIfMissing } from "./files.ts";

/** The limit of Linux (path_resolution(7)). */
const MAX_SYMLINKS = 40;
const GROUP_WRITE_BIT = 0o020;
const OTHERS_WRITE_BIT = 0o002;
const STICKY_BIT = 0o1000;

/**
 * Returns why a file or directory is untrusted: another user (except root) owns it or
 * can write it, one of its parent directories, or a symbolic link on the path. A sticky
 * parent such as `/tmp` is fine: nobody can replace another user's files there. Of a
 * missing path, the parents are checked. On Windows every path is trusted; without
 * `--allow-sys=uid` none is. The reason starts with the offending path. With
 * `requirePrivate`, a file that other users can read is untrusted too.
 */
export async function untrustedReason(
  path: string,
  { requirePrivate = false } = {},
): Promise<string | undefined> {
  if (Deno.build.os === "windows") return undefined;
  const uid = currentUid();
  if (uid === undefined) {
    return "the current user is unknown without --allow-sys=uid";
  }
  const remaining = pathSegments(resolve(path));
  let at = "/";
  for (let links = 0;;) {
    // `null` if missing, `undefined` if denied.
    const found = orIfMissing(Deno.lstat(at)).then((stat) => stat ?? null);
    const stat = await orIfDenied(found);
    if (stat === undefined) return `${at} is not accessible to this user`;
    if (stat === null) return undefined;
    const isLast = remaining.length === 0 && !stat.isSymlink;
    const options = { isParent: !isLast, requirePrivate };
    const why = permissionProblem(stat, uid, options);
    if (why) return `${at} ${why}`;
    if (isLast) return undefined;
    if (stat.isSymlink) {
      if (++links > MAX_SYMLINKS) {
        return `${at} has too many levels of symbolic links`;
      }
      const target = await Deno.readLink(at);
      remaining.unshift(...pathSegments(resolve(dirname(at), target)));
      at = "/";
    } else at = join(at, remaining.shift()!);
  }
}

/**
 * Returns why a directory is unsafe to write into: another user owns it or can replace
 * its files. Parent directories are not checked. On Windows and without
 * `--allow-sys=uid` the check passes.
 */
export async function unsafeDirReason(dir: string) {
  const uid = currentUid();
  if (uid === undefined) return undefined;
  for (const stat of [await Deno.lstat(dir), await Deno.stat(dir)]) {
    const why = permissionProblem(stat, uid, { isParent: true });
    if (why) return `${dir} ${why}`;
  }
}

/**
 * Returns why a path may escape from a directory: a symbolic link below `root`, or a
 * path outside of `root`. Links above `root` are not checked.
 */
export async function symlinkEscapeReason(path: string, root: string) {
  const parts = relative(root, path).split(SEPARATOR);
  if (parts[0] === ".." || isAbsolute(parts[0])) {
    return `${path} is outside of ${root}`;
  }
  for (let at = root; parts.length > 0;) {
    at = join(at, parts.shift()!);
    const stat = await orIfMissing(Deno.lstat(at));
    if (stat?.isSymlink) return `${at} is a symbolic link`;
  }
}

/** This process's user id; `undefined` on Windows and without `--allow-sys=uid`. */
export function currentUid(): number | undefined {
  try {
    return Deno.uid() ?? undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) return undefined;
    throw error;
  }
}

function permissionProblem(
  { uid: owner, gid, mode, isSymlink }: Deno.FileInfo,
  uid: number,
  { isParent, requirePrivate }: { isParent: boolean; requirePrivate?: boolean },
): string | undefined {
  if (owner !== uid && owner !== 0) return `belongs to user ${owner}`;
  // A link's own mode has no effect.
  if (isSymlink || mode === null) return undefined;
  // A group with the owner's id is the owner's private group (login.defs(5), USERGROUPS_ENAB).
  const shared = gid === owner
    ? OTHERS_WRITE_BIT
    : OTHERS_WRITE_BIT | GROUP_WRITE_BIT;
  const octal = (mode & 0o7777).toString(8);
  if (mode & shared && !(isParent && mode & STICKY_BIT)) {
    return `can be written by other users (mode ${octal})`;
  }
  if (requirePrivate && !isParent && mode & 0o077) {
    return `can be read by other users (mode ${octal})`;
  }
}

function pathSegments(path: string): string[] {
  return path.split("/").filter((part) => part !== "");
}

/** Returns the parent of a file's `.toolsmith/`, or else the file's directory. */
export function workspaceOf(file: string): string {
  const dir = dirname(file);
  return basename(dir) === ".toolsmith" ? dirname(dir) : dir;
}

/**
 * Returns why a path in `.toolsmith/` is refused: the path or `.toolsmith/` is a
 * symbolic link, which may lead out of the workspace. Links outside of `.toolsmith/`
 * are allowed, because the user named the path, which must be absolute.
 */
export async function workspaceSymlinkReason(path: string) {
  const root = workspaceOf(path);
  return root === dirname(path)
    ? undefined
    : await symlinkEscapeReason(path, root);
}
