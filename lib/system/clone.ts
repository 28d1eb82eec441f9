/**
 * Copies that share the blocks of the original, on filesystems that have such.
 *
 * @module
 */
import { dirname } from "../path.ts";

/** `statfs` on Linux: `BTRFS_SUPER_MAGIC` and `XFS_SUPER_MAGIC` of linux/magic.h. */
const SHARING = new Set([0x9123683e, 0x58465342]);

/**
 * Makes a copy that takes no room and no time, where the filesystem of both
 * paths shares blocks: Btrfs, XFS, APFS. `Deno.copyFile` asks for that there.
 *
 * Needs `--allow-read` and `--allow-write` for them; on Linux, `--allow-sys=statfs`.
 *
 * @param from The original, a file.
 * @param to The copy, which is not there yet.
 * @returns `false` where nothing can be shared, and nothing was made.
 */
export async function cloneFile(from: string, to: string): Promise<boolean> {
  const dir = dirname(to);
  const [{ dev }, target] = [await Deno.stat(from), await Deno.stat(dir)];
  if (dev !== target.dev || !await sharesBlocks(dir)) return false;
  await Deno.copyFile(from, to);
  return true;
}

async function sharesBlocks(dir: string): Promise<boolean> {
  if (Deno.build.os !== "linux") return Deno.build.os === "darwin";
  // It loads all of Deno's Node emulation.
  const { statfs } = await import("node:fs/promises");
  return await statfs(dir).then(({ type }) => SHARING.has(type), () => false);
}
