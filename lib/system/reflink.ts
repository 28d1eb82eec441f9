/**
 * Copies files as reflinks, which share their disk blocks with the original.
 *
 * @module
 */
import { dirname } from "../path.ts";
import { statFilesystem } from "./free_space.ts";

/** `statfs` on Linux: `BTRFS_SUPER_MAGIC` and `XFS_SUPER_MAGIC` of linux/magic.h. */
const REFLINK_FILESYSTEMS = new Set<number | undefined>([
  0x9123683e,
  0x58465342,
]);

/**
 * Copies a file without copying its data, if both paths are on one filesystem
 * with reflinks (Btrfs, XFS, APFS); `Deno.copyFile` creates a reflink there.
 *
 * Needs `--allow-read` and `--allow-write` for both; on Linux, `--allow-sys=statfs`.
 *
 * @returns `false` if reflinks are not supported; then no file is created.
 */
export async function tryReflinkFile(
  from: string,
  to: string,
): Promise<boolean> {
  const dir = dirname(to);
  const [{ dev }, target] = [await Deno.stat(from), await Deno.stat(dir)];
  if (dev !== target.dev || !await supportsReflinks(dir)) return false;
  await Deno.copyFile(from, to);
  return true;
}

async function supportsReflinks(dir: string): Promise<boolean> {
  if (Deno.build.os !== "linux") return Deno.build.os === "darwin";
  const { type } = await statFilesystem(dir) ?? {};
  return REFLINK_FILESYSTEMS.has(type);
}
