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
import { writeAll } from "../system/write_all.ts";
import { hashFile } from "../transfer/file_digest.ts";
import {
  type FetchedImage,
  type FetchRequest,
  reportTransferStart,
  type ResolvedFetchOptions,
  toQcow2FileName,
} from "./_fetch_request.ts";

/** `statfs` on Linux: `BTRFS_SUPER_MAGIC` and `XFS_SUPER_MAGIC` of linux/magic.h. */
const REFLINK_FILESYSTEMS = new Set<number | undefined>([
  0x9123683e,
  0x58465342,
]);
/** A smaller hole is not worth a seek. */
const MIN_HOLE_BYTES = 64 * 1024;

/**
 * Copies a local image: as a reflink where the file system supports that, else
 * with its holes.
 */
export async function copyLocalImage(
  request: FetchRequest,
  options: ResolvedFetchOptions,
  path: string,
): Promise<FetchedImage> {
  try {
    const stat = await Deno.stat(path);
    if (!stat.isFile) {
      const message = `Cannot hydrate from ${path}: not a regular file`;
      const hint = "set image.qcow2 in the manifest to the path of a file";
      throw new ToolsmithError("file_unreadable", message, { hint });
    }
    const name = toQcow2FileName(basename(path));
    const copy = join(request.dir, name);
    // Writing to a link that an interrupted run left would change its target.
    await removeTree(copy);
    const cloned = await tryReflinkFile(path, copy);
    if (!cloned) await assertFreeSpace(request.dir, allocatedBytes(stat));
    const { size } = cloned ? await Deno.stat(copy) : stat;
    const progress = reportTransferStart(request, options, { total: size });
    const { env, signal } = options;
    const engine = selectDigestEngine(size, env);
    const hashing = { signal, onBytesRead: progress.reportBytes, engine };
    const { sha256, hashed: hashedFile } = cloned
      ? await hashFile(copy, hashing)
      : await copyAndHash(path, copy, hashing);
    const { size: bytes } = hashedFile;
    progress.reportEnd(bytes);
    return { path: copy, fileName: name, bytes, sha256, hashedFile };
  } catch (cause) {
    throw cause instanceof Deno.errors.NotFound
      ? localImageNotFoundError(path, cause)
      : cause;
  }
}

/** Computes the digest in the same pass. */
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
      await writeSparse(file, chunk);
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

function localImageNotFoundError(path: string, cause: unknown): ToolsmithError {
  const looksLikeReference = /^[a-z0-9.-]+\.[a-z]+(?::\d+)?\/.+:/i.test(
    path.split("/.toolsmith/").at(-1) ?? "",
  );
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
export async function writeSparse(
  file: Deno.FsFile,
  bytes: Uint8Array<ArrayBuffer>,
): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    const isHole = isAllZeros(bytes.subarray(at, at + MIN_HOLE_BYTES));
    let end = at;
    do end = Math.min(end + MIN_HOLE_BYTES, bytes.length); while (
      end < bytes.length &&
      isAllZeros(bytes.subarray(end, end + MIN_HOLE_BYTES)) === isHole
    );
    if (isHole) await file.seek(end - at, Deno.SeekMode.Current);
    else await writeAll(file, bytes.subarray(at, end));
    at = end;
  }
}

/** Whether a block has only zeros; most other blocks differ in their first bytes. */
function isAllZeros(block: Uint8Array<ArrayBuffer>): boolean {
  const aligned = block.byteOffset % 4 === 0;
  const words = aligned
    ? new Uint32Array(block.buffer, block.byteOffset, block.length >> 2)
    : new Uint32Array();
  // A loop is five times as fast as `every`.
  for (let at = 0; at < words.length; at++) if (words[at] !== 0) return false;
  for (let at = words.length * 4; at < block.length; at++) {
    if (block[at] !== 0) return false;
  }
  return true;
}
