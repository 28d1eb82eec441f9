/**
 * The chunk index of an image. Format: a line of JSON with `version`, `size` in bytes
 * and `digest` of the image; then the record of each chunk, in order.
 */
import { ToolsmithError } from "../errors.ts";
import { compressedClusterOffsets } from "../image/compressed_clusters.ts";
import type { ExpectedContent } from "../system/part_record.ts";
import { abortable } from "../system/time.ts";
import { createChunker, MAX_PUSH_BYTES, readChunks } from "./chunker.ts";

/** Ending of the index beside an image. */
export const CHUNK_INDEX_SUFFIX = ".chunks";
/** A smaller image is downloaded as a whole. */
export const MIN_INDEXED_IMAGE_BYTES = 64 * 1024 * 1024;
/** The attached artifact. */
export const CHUNK_INDEX = {
  /** Artifact type, and media type of the file. */
  type: "application/vnd.fountain.toolsmith.chunks.v1",
  /** Enough for some 25 GiB; bounds the memory, too. */
  maxBytes: 16 * 1024 * 1024,
};
const MAX_HEADER_BYTES = 512;

export interface ChunkIndex extends ExpectedContent {
  /** The records, whose lengths add up to the image's size. */
  records: Uint8Array;
}

export function formatChunkIndex({ size, digest, records }: ChunkIndex) {
  const header = JSON.stringify({ version: 1, size, digest });
  return new Blob([`${header}\n`, records as BlobPart]).bytes();
}

/**
 * Returns the first file that is the index of an image. Files are untrusted, and
 * hashes may be wrong: only the digest of the complete image decides.
 *
 * @throws {ToolsmithError} `payload_missing`.
 */
export async function findChunkIndex(
  files: AsyncIterable<Uint8Array>,
  image: ExpectedContent,
): Promise<ChunkIndex> {
  for await (const bytes of files) {
    const records = parseRecords(bytes, image);
    if (records) return { ...image, records };
  }
  throw new ToolsmithError("payload_missing", "no chunk index was found", {
    hint: "compare with a file: toolsmith publish --previous FILE",
  });
}

function parseRecords(bytes: Uint8Array, image: ExpectedContent) {
  const start = bytes.subarray(0, MAX_HEADER_BYTES);
  const end = start.indexOf(10);
  const records = bytes.subarray(end + 1);
  try {
    const header = JSON.parse(new TextDecoder().decode(start.subarray(0, end)));
    let size = 0;
    for (const { length } of readChunks(records)) size += length;
    const isOfImage = header.version === 1 && header.size === image.size &&
      header.digest === image.digest && size === image.size;
    return isOfImage ? records : undefined;
  } catch {
    return undefined;
  }
}

export async function* readFileRecords(
  file: Deno.FsFile,
  { signal }: { signal?: AbortSignal },
): AsyncGenerator<Uint8Array> {
  const clusters = await abortable(compressedClusterOffsets(file), signal);
  const push = createChunker(clusters);
  const buffer = new Uint8Array(MAX_PUSH_BYTES);
  await file.seek(0, Deno.SeekMode.Start);
  for (let count; (count = await file.read(buffer)) !== null;) {
    signal?.throwIfAborted();
    yield await push(buffer.subarray(0, count));
  }
  yield await push(undefined);
}
