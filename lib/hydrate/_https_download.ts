/** Downloads an image from an `https://` URL, and resumes partial downloads. */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { CHUNK_INDEX, CHUNK_INDEX_SUFFIX } from "../delta/chunk_index.ts";
import {
  detectNonQcow2Format,
  FORMAT_PROBE_BYTES,
  notQcow2Error,
} from "../image/detect_format.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import { selectDigestEngine, sha256ToDigest } from "../system/digest.ts";
import { assertFreeSpace } from "../system/free_space.ts";
import { createHttpClient, type HttpClient } from "../system/http_client.ts";
import { openPartFile, type PartFile } from "../system/part_file.ts";
import { readPartRecord } from "../system/part_record.ts";
import { openIncrementalFileSync } from "../system/incremental_sync.ts";
import { withOptionalRequestTimeout } from "../system/stall_timer.ts";
import { writeAllSync } from "../system/write_all.ts";
import {
  hashGrowingFile,
  hashPartFileWhileFilling,
} from "../transfer/file_digest.ts";
import { Transfer, type TransferTarget } from "../transfer/ranged_transfer.ts";
import {
  type FetchedImage,
  type FetchRequest,
  reportTransferStart,
  type ResolvedFetchOptions,
  toQcow2FileName,
} from "./_fetch_request.ts";
import { downloadSmallFile, httpsByteSource } from "./_https_byte_source.ts";
import { copyFromBase } from "./_update.ts";

/** Bytes written between two free-space checks, if the body has no length. */
const SPACE_CHECK_INTERVAL_BYTES = 1024 * 1024;

/**
 * Downloads an image. A partial download is kept for the next run if the server
 * states the size and the digest is pinned: without a digest, the server may
 * serve another image by then.
 */
export async function downloadHttpsImage(
  request: FetchRequest,
  options: ResolvedFetchOptions,
  url: URL,
): Promise<FetchedImage> {
  const { dir, image, pinned } = request;
  const digest = sha256ToDigest(image.sha256);
  const name = toQcow2FileName(url.pathname.split("/").at(-1) ?? "");
  const record = pinned ? await readPartRecord(dir) : undefined;
  const [from, to] = record?.digest === digest ? record.extents[0] : [];
  using client = await createHttpClient(options.caFile);
  using transfer = newHttpsTransfer(url, client, options);
  // A complete part file still needs one request, which cannot be empty.
  const kept = from === 0 ? Math.min(to!, record!.size - 1) : 0;
  let answer = await transfer.openAndPeek(kept, FORMAT_PROBE_BYTES);
  if (answer.start > 0 && answer.end !== record!.size) {
    answer = await transfer.openAndPeek(0, FORMAT_PROBE_BYTES);
  }
  const { end: size, head } = answer;
  // Fail now: the rest may take hours.
  if (answer.start === 0 && detectNonQcow2Format(head)) {
    throw notQcow2Error(head, formatImageSource(image.source));
  }
  if (size < Infinity) await assertFreeSpace(dir, size - answer.start);
  if (size === Infinity || !pinned) {
    const file = { transfer, name, size };
    return await downloadWithoutResume(request, options, file);
  }
  const engine = selectDigestEngine(size, options.env);
  await using part = await openPartFile(dir, { size, digest }, { engine });
  let update = await copyFromBase(request, options, part, {
    readIndexes: () => fetchIndexBeside(url, client, options),
    download: ({ onBytesWritten, ...probe }) =>
      newHttpsTransfer(url, client, probe).fill(part, onBytesWritten),
  });
  // Bytes from earlier, or of the base, may be wrong.
  const isAllNew = part.presentBytes === 0;
  // The open response has the whole file.
  using gaps = newHttpsTransfer(url, client, options);
  const used = update ? gaps : transfer;
  let sha256 = await downloadMissingRanges(request, options, used, part);
  if (sha256 !== image.sha256 && !isAllNew) {
    const reason = `the bytes have the digest ${sha256ToDigest(sha256)}`;
    if (update) {
      options.emit({ type: "update_declined", image: image.name, reason });
    }
    update = undefined;
    await part.clear();
    using fresh = newHttpsTransfer(url, client, options);
    const { end } = await fresh.openAndPeek(0, 0);
    if (end !== size) throw sourceChangedError(request);
    sha256 = await downloadMissingRanges(request, options, fresh, part);
  }
  const hashedFile = await part.markComplete();
  const fetched = { path: part.path, fileName: name, bytes: size, sha256 };
  return { ...fetched, hashedFile, ...update && { update } };
}

/** Yields the file that may be the image's chunk index. */
async function* fetchIndexBeside(
  image: URL,
  client: HttpClient,
  options: ResolvedFetchOptions,
): AsyncGenerator<Uint8Array> {
  const url = new URL(image);
  url.pathname += CHUNK_INDEX_SUFFIX;
  const limits = withOptionalRequestTimeout(options);
  const { maxBytes: limit } = CHUNK_INDEX;
  yield await downloadSmallFile(url, client, { ...limits, limit });
}

function newHttpsTransfer(
  url: URL,
  client: HttpClient,
  options: ResolvedFetchOptions,
): Transfer {
  // A file server for browsers may limit or dislike parallel connections.
  const source = httpsByteSource(url, client);
  return new Transfer(source, { ...options, connections: 1 });
}

/** Downloads what the part file lacks; returns the digest of the whole. */
async function downloadMissingRanges(
  request: FetchRequest,
  options: ResolvedFetchOptions,
  transfer: Transfer,
  part: PartFile,
) {
  const { presentBytes: resumed, size: total } = part;
  const progress = reportTransferStart(request, options, { total, resumed });
  const sha256 = await hashPartFileWhileFilling(
    part,
    options.signal,
    () => transfer.fill(part, () => progress.reportBytes(part.presentBytes)),
  );
  progress.reportEnd(total - resumed);
  return sha256;
}

/** The next attempt resumes the bytes that are present. */
function sourceChangedError({ image }: FetchRequest): ToolsmithError {
  const message = `Cannot download ${
    formatImageSource(image.source)
  }: the file on the server changed its size during the transfer`;
  const hint = "try again";
  return new ToolsmithError("transfer_interrupted", message, { hint });
}

/** Downloads an image to a new file, which no later run resumes. */
async function downloadWithoutResume(
  request: FetchRequest,
  options: ResolvedFetchOptions,
  { transfer, name, size }: {
    transfer: Transfer;
    name: string;
    size: number;
  },
): Promise<FetchedImage> {
  const { dir } = request;
  const path = join(dir, name);
  // Rejects a bad TOOLSMITH_DIGEST before the transfer starts.
  const engine = selectDigestEngine(size, options.env);
  const total = size < Infinity ? size : null;
  const progress = reportTransferStart(request, options, { total });
  await using sync = openIncrementalFileSync(path);
  using file = await Deno.open(path, { write: true, createNew: true });
  let [bytes, checked, ended] = [0, 0, false];
  const target: TransferTarget = {
    size,
    missingExtents: ([from, to] = [0, size]) =>
      ended || bytes >= to ? [] : [[Math.max(from, bytes), to]],
    openWriter: () => Promise.resolve({ write, [Symbol.dispose]() {} }),
    markEnded: () => ended = true,
  };
  async function write(_position: number, chunk: Uint8Array): Promise<void> {
    if (size === Infinity && bytes >= checked) {
      // A body without a length may be endless: it must not fill the disk.
      await assertFreeSpace(dir, SPACE_CHECK_INTERVAL_BYTES);
      checked = bytes + SPACE_CHECK_INTERVAL_BYTES;
    }
    writeAllSync(file, chunk);
    bytes += chunk.length;
    sync.reportWritten(bytes);
  }
  const done = transfer.fill(target, () => progress.reportBytes(bytes));
  const { sha256, hashed } = await hashGrowingFile(path, done, { engine });
  await sync.settled();
  progress.reportEnd(bytes);
  return { path, fileName: name, bytes, sha256, hashedFile: hashed };
}
