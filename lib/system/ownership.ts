/**
 * Whose a file is: on a host of several users, what another one may have
 * written is not believed.
 *
 * @module
 */
import {
  dirname,
  isAbsolute,
  join,
  relative,
  resolve,
  SEPARATOR,
} from "../path.ts";

/** What {@linkcode whyUntrusted} takes. */
export interface TrustOptions {
  /** Also demand that nobody else may read it. @default {false} */
  secret?: boolean;
  /** The user who asks, by number. @default {undefined} this process's */
  uid?: number;
}

/** How many symbolic links are followed, as Linux does (path_resolution(7)). */
const MAX_LINKS = 40;
const GROUP_WRITES = 0o020;
const OTHERS_WRITE = 0o002;
const STICKY = 0o1000;

/**
 * Says why a file or directory is not to be believed: somebody else than this
 * user and root owns it or can write it, or a directory above, or a symbolic
 * link on the way. Above, a sticky directory such as `/tmp` is fine: nobody can
 * replace there what another user owns. Windows has no such owners and modes:
 * all is trusted.
 *
 * Needs `--allow-read` for it and the directories above, and `--allow-sys=uid`.
 *
 * @param path The file or directory. Of what is not there, only the directories
 * above count.
 * @param options Who asks, and for what.
 * @returns Why not, with the path that is the reason; `undefined` if trusted.
 *
 * @example
 * ```ts no-assert ignore
 * const why = await whyUntrusted("/srv/cache/verified.json");
 * if (why) console.error(`not used: ${why}`);
 * ```
 */
export async function whyUntrusted(
  path: string,
  options: TrustOptions = {},
): Promise<string | undefined> {
  if (Deno.build.os === "windows") return undefined;
  const { secret = false, uid = ownUid() } = options;
  if (uid === undefined) {
    return "who the user is cannot be read without --allow-sys=uid";
  }
  const rest = parts(resolve(path));
  let at = "/";
  for (let links = 0;;) {
    let stat: Deno.FileInfo | undefined;
    try {
      stat = await lstat(at);
    } catch (error) {
      if (!(error instanceof Deno.errors.PermissionDenied)) throw error;
      return `${at} is not for this user to see`;
    }
    if (!stat) return undefined;
    const isLast = rest.length === 0 && !stat.isSymlink;
    const why = reason(stat, uid, { above: !isLast, secret });
    if (why) return `${at} ${why}`;
    if (isLast) return undefined;
    if (stat.isSymlink) {
      if (++links > MAX_LINKS) return `${at} leads in a circle`;
      const target = await Deno.readLink(at);
      rest.unshift(...parts(resolve(dirname(at), target)));
      at = "/";
      continue;
    }
    const next = rest.shift()!;
    at = at === "/" ? `/${next}` : `${at}/${next}`;
  }
}

/**
 * Says why a directory is not one to write into: somebody else owns it, or can
 * replace what this user puts there. Directories above do not count.
 *
 * Needs `--allow-read` for it, and `--allow-sys=uid`; without that, and on
 * Windows, nothing is said.
 *
 * @param dir The directory.
 * @returns Why not, with the path; `undefined` if it is fine.
 */
export async function whyUnsafe(dir: string): Promise<string | undefined> {
  const uid = ownUid();
  if (uid === undefined) return undefined;
  const [itself, named] = [await lstat(dir), await Deno.stat(dir)];
  for (const stat of itself ? [itself, named] : []) {
    const why = reason(stat, uid, { above: true });
    if (why) return `${dir} ${why}`;
  }
}

/**
 * Says why a path leads out of a directory: a part of it is a symbolic link, or
 * it does not lie below the directory. Links above the directory do not count.
 *
 * Needs `--allow-read` for the parts below the directory.
 *
 * @param path The file or directory, which need not exist.
 * @param root The directory.
 * @returns Why, with the path that is the reason; `undefined` if it stays inside.
 */
export async function whyLinked(
  path: string,
  root: string,
): Promise<string | undefined> {
  const parts = relative(root, path).split(SEPARATOR);
  if (parts[0] === ".." || isAbsolute(parts[0])) {
    return `${path} is not in ${root}`;
  }
  for (let at = root; parts.length > 0;) {
    at = join(at, parts.shift()!);
    if ((await lstat(at))?.isSymlink) return `${at} is a symbolic link`;
  }
}

/**
 * The number of this process's user.
 *
 * Needs `--allow-sys=uid`.
 *
 * @returns The number; `undefined` on Windows and without the permission.
 */
export function ownUid(): number | undefined {
  try {
    return Deno.uid() ?? undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) return undefined;
    throw error;
  }
}

function reason(
  { uid: owner, gid, mode, isSymlink }: Deno.FileInfo,
  uid: number,
  { above, secret }: { above: boolean; secret?: boolean },
): string | undefined {
  if (owner !== uid && owner !== 0) return `belongs to user ${owner}`;
  // The mode of a link says nothing.
  if (isSymlink || mode === null) return undefined;
  // A group of the owner's own number is the owner's alone (login.defs(5), USERGROUPS_ENAB).
  const shared = gid === owner ? OTHERS_WRITE : OTHERS_WRITE | GROUP_WRITES;
  const octal = (mode & 0o7777).toString(8);
  if (mode & shared && !(above && mode & STICKY)) {
    return `can be written by other users (mode ${octal})`;
  }
  if (secret && !above && mode & 0o077) {
    return `can be read by other users (mode ${octal})`;
  }
}

function parts(path: string): string[] {
  return path.split("/").filter((part) => part !== "");
}

async function lstat(path: string): Promise<Deno.FileInfo | undefined> {
  try {
    return await Deno.lstat(path);
  } catch (error) {
    const none = error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.NotADirectory;
    if (none) return undefined;
    throw error;
  }
}
