/**
 * Moves what was unpacked from a guest into an export of the host.
 *
 * @module
 */
import { dirname, join } from "../path.ts";
import { absentAs } from "../system/files.ts";

/**
 * Moves all that is in a directory into another one. A file or link replaces what
 * has its name; no link is followed. A directory replaces nothing, and is replaced
 * by nothing: its files join those that are there.
 *
 * Needs `--allow-read` and `--allow-write` for both.
 *
 * @param from A directory that nobody else can write to.
 * @param to Where it goes; may be on another filesystem.
 * @param signal Ends the work between two entries when aborted.
 * @returns Paths in it that were not moved.
 * @throws The signal's reason when it is aborted.
 */
export async function moveTree(
  from: string,
  to: string,
  signal?: AbortSignal,
): Promise<string[]> {
  const refused: string[] = [];
  const dirs = ["."];
  const copies = new Map<number, string>();
  for (let dir = dirs.pop(); dir !== undefined; dir = dirs.pop()) {
    const entries = await Array.fromAsync(Deno.readDir(join(from, dir)));
    for (const { name, isDirectory } of entries) {
      signal?.throwIfAborted();
      const inside = join(dir, name);
      const [source, target] = [join(from, inside), join(to, inside)];
      const there = await absentAs(undefined, Deno.lstat(target));
      if (isDirectory && !there) {
        const { mode } = await Deno.lstat(source);
        await Deno.mkdir(target, { mode: mode ?? undefined });
      }
      if (isDirectory && (!there || there.isDirectory)) dirs.push(inside);
      else if (isDirectory || there?.isDirectory) refused.push(inside);
      else await moveFile(source, target, copies);
    }
  }
  return refused;
}

/** Copies a file with several names once, to another filesystem as well. */
async function moveFile(
  from: string,
  to: string,
  copies: Map<number, string>,
) {
  try {
    return await Deno.rename(from, to);
  } catch (error) {
    if ((error as { code?: string }).code !== "EXDEV") throw error;
  }
  const fresh = join(dirname(to), `.${crypto.randomUUID()}.new`);
  try {
    const { isSymlink, atime, mtime, mode, ino } = await Deno.lstat(from);
    const copy = copies.get(ino ?? NaN);
    if (isSymlink) await Deno.symlink(await Deno.readLink(from), fresh);
    else if (copy) await Deno.link(copy, fresh);
    else {
      // The guest may have closed it to its owner.
      await Deno.chmod(from, 0o600);
      await Deno.copyFile(from, fresh);
      await Deno.chmod(fresh, mode! & 0o777);
      if (mtime) await Deno.utime(fresh, atime ?? mtime, mtime);
      if (ino !== null) copies.set(ino, to);
    }
    await Deno.rename(fresh, to);
  } catch (error) {
    await Deno.remove(fresh).catch(() => {});
    throw error;
  }
}
