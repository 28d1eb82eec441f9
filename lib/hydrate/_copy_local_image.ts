/**
 * Copies an image from a local path: as a reflink, which shares its disk blocks with
 * the original, or as a sparse file, whose zeros are holes without disk blocks.
 */
import { basename, dirname, join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import {
  readFileChunks,
  selectDigestEngine,
  sha256OfChunks,
} from "../system/digest.ts";
import { allocatedBytes, removeTree, toFileIdentity } from "../system/files.ts";
import { assertFreeSpace, statFilesystem } from "../system/free_space.ts";
import { openIncrementalFileSync } from "../system/incremental_sync.ts";
import { writeAllSync } from "../system/write_all.ts";
import { hashFile } from "../transfer/file_digest.ts";
import {
  type FetchedImage,
  type FetchJob,
  reportTransferStart,
  toQcow2FileName,
} from "./_fetch_job.ts";

/** `statfs` on Linux: `BTRFS_SUPER_MAGIC` and `XFS_SUPER_MAGIC` of linux/magic.h. */
const REFLINK_FILESYSTEMS = new Set<number | undefined>([
  0x9123683e,
  0x58465342,
]);
/** A smaller hole is not worth a seek. */
const BLOCK_BYTES = 64 * 1024;
const ZEROS = new Uint8Array(BLOCK_BYTES);

/**
 * Copies a local image: as a reflink where the file system supports that, else
 * with its holes. An image that is missing or disappears is a `source_not_found`.
 */
export function copyLocalImage(
  job: FetchJob,
  path: string,
): Promise<FetchedImage> {
  return reflinkOrCopy(job, path).catch((cause) => {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw localImageNotFoundError(path, cause);
  });
}

async function reflinkOrCopy(
  job: FetchJob,
  path: string,
): Promise<FetchedImage> {
  const { dir, env, signal } = job;
  const stat = await Deno.stat(path);
  if (!stat.isFile) {
    const message = `Cannot hydrate from ${path}: not a regular file`;
    const hint = "set image.qcow2 in the manifest to the path of a file";
    throw new ToolsmithError("file_unreadable", message, { hint });
  }
  const fileName = toQcow2FileName(basename(path));
  const copy = join(dir, fileName);
  // Writing to a link that an interrupted run left would change its target.
  await removeTree(copy);
  const isCloned = await tryReflinkFile(path, copy);
  if (!isCloned) await assertFreeSpace(dir, allocatedBytes(stat));
  const progress = reportTransferStart(job, { total: stat.size });
  const engine = selectDigestEngine(stat.size, env);
  const hashing = { signal, onBytesRead: progress.reportBytes, engine };
  const { sha256, hashed: hashedFile } = isCloned
    ? await hashFile(copy, hashing)
    : await copyAndHash(path, copy, hashing);
  const { size: bytes } = hashedFile;
  progress.reportEnd(bytes);
  return { path: copy, fileName, bytes, sha256, hashedFile };
}

async function copyAndHash(
  from: string,
  to: string,
  { engine, ...options }: Parameters<typeof hashFile>[1],
) {
  await using sync = openIncrementalFileSync(to);
  using file = await Deno.open(to, { write: true, createNew: true });
  let bytes = 0;
  const written = async function* () {
    for await (const chunk of readFileChunks(from, options)) {
      writeSparse(file, chunk);
      sync.reportWritten(bytes += chunk.length);
      yield chunk;
    }
  };
  const sha256 = await sha256OfChunks(written(), engine);
  // A hole at the end was not written: extend the file over it.
  await file.truncate(bytes);
  await sync.settled();
  return { sha256, hashed: toFileIdentity(await file.stat()) };
}

function localImageNotFoundError(path: string, cause: Error): ToolsmithError {
  const name = path.split("/.toolsmith/").at(-1)!;
  const looksLikeReference = /^[a-z0-9.-]+\.[a-z]+(?::\d+)?\/.+:/i.test(name);
  const message = `Cannot hydrate from ${path}: no such file`;
  const hint = looksLikeReference
    ? "write the registry reference in the manifest with the prefix oci://"
    : "check image.qcow2 in the manifest: a relative path starts at the manifest's directory, a registry reference starts with oci://";
  return new ToolsmithError("source_not_found", message, { hint, cause });
}

/**
 * Copies a file without copying its data, if both paths are on one filesystem with
 * reflinks (Btrfs, XFS, APFS); `Deno.copyFile` creates a reflink there. Elsewhere
 * returns `false` and creates no file. On Linux, needs `--allow-sys=statfs`.
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

/**
 * Writes bytes at the file's current position, which must be at its end, and skips
 * blocks of 64 KiB that are all zeros. If the file ends in a hole, the caller must
 * truncate the file to its full length.
 */
export function writeSparse(file: Deno.FsFile, bytes: Uint8Array): void {
  // Its comparison is 20 times as fast as a loop.
  const { Buffer } = process.getBuiltinModule("node:buffer");
  for (let at = 0; at < bytes.length; at += BLOCK_BYTES) {
    const block = bytes.subarray(at, at + BLOCK_BYTES);
    const isHole = Buffer.compare(block, ZEROS.subarray(0, block.length)) === 0;
    if (isHole) file.seekSync(block.length, Deno.SeekMode.Current);
    else writeAllSync(file, block);
  }
}
