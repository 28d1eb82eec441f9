/** Checks free disk space before a write begins. */
import { ToolsmithError } from "../errors.ts";

/** Reserved for records and for concurrent writers. */
const FREE_SPACE_MARGIN_BYTES = 8 * 1024 * 1024;

const CACHE_HINT =
  "free disk space (toolsmith cache prune), or set another cache directory: TOOLSMITH_CACHE=DIR";

/**
 * Throws if a filesystem has too little free space; passes if statfs does not work or
 * is not permitted.
 */
export async function assertFreeSpace(
  dir: string,
  bytes: number,
  hint = CACHE_HINT,
) {
  const free = await readFreeDiskBytes(dir);
  if (free === undefined || bytes + FREE_SPACE_MARGIN_BYTES <= free) return;
  const message =
    `Not enough disk space in ${dir}: ${bytes} bytes and 8 MiB spare needed, ${free} free`;
  throw new ToolsmithError("disk_full", message, { hint });
}

/** Free bytes for unprivileged users; `undefined` if unknown. */
export async function readFreeDiskBytes(dir: string) {
  const found = await statFilesystem(dir);
  return found && found.bavail * found.bsize;
}

/** Returns `undefined` without statfs or the permission for it. */
export async function statFilesystem(dir: string) {
  // Imported late: Node modules would add milliseconds to every start.
  const { statfs } = await import("node:fs/promises");
  return await statfs(dir).catch(() => undefined);
}
