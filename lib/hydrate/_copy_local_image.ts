/**
 * Copies an image from a local path.
 *
 * @module
 */
import { basename, join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { tryReflinkFile } from "../system/reflink.ts";
import {
  readFileChunks,
  selectDigestEngine,
  sha256OfChunks,
} from "../system/digest.ts";
import { allocatedBytes, removeTree, toFileIdentity } from "../system/files.ts";
import { assertFreeSpace } from "../system/free_space.ts";
import { writeSparse } from "../system/sparse_file.ts";
import { openIncrementalFileSync } from "../system/incremental_sync.ts";
import { hashFile } from "../transfer/file_digest.ts";
import {
  type FetchedImage,
  type FetchRequest,
  reportTransferStart,
  type ResolvedFetchOptions,
  toQcow2FileName,
} from "./_fetch_request.ts";

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
      throw new ToolsmithError(
        "file_unreadable",
        `Cannot hydrate from ${path}: not a regular file`,
        { hint: "set image.qcow2 in the manifest to the path of a file" },
      );
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
  return new ToolsmithError(
    "source_not_found",
    `Cannot hydrate from ${path}: no such file`,
    {
      hint: looksLikeReference
        ? "write the registry reference in the manifest with the prefix oci://"
        : "check image.qcow2 in the manifest: a relative path starts at the manifest's directory, a registry reference starts with oci://",
      cause,
    },
  );
}
