/** Downloads an image from an `https://` URL, and resumes partial downloads. */
import { join } from "../path.ts";
import { CHUNK_INDEX, CHUNK_INDEX_SUFFIX } from "../delta/chunk_index.ts";
import {
  detectNonQcow2Format,
  FORMAT_PROBE_BYTES,
  notQcow2Error,
} from "../image/detect_format.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import { selectDigestEngine, sha256ToDigest } from "../system/digest.ts";
import { removeTree } from "../system/files.ts";
import { assertFreeSpace } from "../system/free_space.ts";
import { createHttpClient, type HttpClient } from "../system/http_client.ts";
import { openPartFile } from "../system/part_file.ts";
import { readPartRecord } from "../system/part_record.ts";
import { openIncrementalFileSync } from "../system/incremental_sync.ts";
import { withOptionalRequestTimeout } from "../system/stall_timer.ts";
import { writeAllSync } from "../system/write_all.ts";
import { hashFile } from "../transfer/file_digest.ts";
import {
  createTransfer,
  type Transfer,
  transferInterruptedError,
  type TransferTarget,
} from "../transfer/ranged_transfer.ts";
import {
  downloadIntoPart,
  type FetchedImage,
  type FetchJob,
  type PartDownload,
  reportTransferStart,
  toQcow2FileName,
} from "./_fetch_job.ts";
import { downloadSmallFile, httpsByteSource } from "./_https_byte_source.ts";
import { copyFromBase } from "./_update.ts";

/** Bytes written between two free-space checks, if the body has no length. */
const SPACE_CHECK_INTERVAL_BYTES = 1024 * 1024;

/**
 * Downloads an image. A partial download is kept for the next run if the server
 * states the size and the digest is pinned: without a digest, the server may
 * serve another image by then.
 *
 * @param knownSize The size that the server stated before.
 */
export async function downloadHttpsImage(
  job: FetchJob,
  url: URL,
  knownSize?: number,
): Promise<FetchedImage> {
  const { dir, emit, env, image } = job;
  const { name, source, sha256: pinned } = image;
  const shown = formatImageSource(source);
  const digest = pinned && sha256ToDigest(pinned);
  const found = digest ? await readPartRecord(dir) : undefined;
  const record = found?.digest === digest ? found : undefined;
  const [from, to] = record?.extents[0] ?? [];
  using client = await createHttpClient(job.caFile);
  const open = (how: FetchJob) =>
    createTransfer(httpsByteSource(url, client), how);
  using transfer = open(job);
  // A complete part file still needs one request, which cannot be empty.
  const kept = from === 0 ? Math.min(to!, record!.size - 1) : 0;
  let answer = await transfer.openAndPeek(kept, FORMAT_PROBE_BYTES);
  if (answer.start > 0 && answer.end !== record!.size) {
    answer = await transfer.openAndPeek(0, FORMAT_PROBE_BYTES);
  }
  const { start, end: size, head } = answer;
  if (knownSize !== undefined && knownSize !== size) {
    // The next attempt resumes the bytes that are present.
    throw transferInterruptedError(
      `Cannot download ${shown}: the file on the server changed its size during the transfer`,
    );
  }
  // Fail now: the rest may take hours.
  if (start === 0 && detectNonQcow2Format(head)) {
    throw notQcow2Error(head, shown);
  }
  if (size < Infinity) await assertFreeSpace(dir, size - start);
  const fileName = toQcow2FileName(url.pathname.split("/").at(-1) ?? "");
  if (size === Infinity || !digest) {
    return await downloadWithoutResume(job, transfer, fileName, size);
  }
  const engine = selectDigestEngine(size, env);
  await using part = await openPartFile(dir, { size, digest }, { engine });
  const indexes = fetchIndexBeside(url, client, job);
  const request: PartDownload = ({ onBytesWritten, ...how }) =>
    open(how).fill(part, onBytesWritten);
  const readOn: PartDownload = ({ onBytesWritten }) =>
    transfer.fill(part, onBytesWritten);
  const update = await copyFromBase(job, part, indexes, request);
  // Bytes from earlier, or of the base, may be wrong.
  const isAllNew = part.presentBytes === 0;
  // The open response has the whole file, an update needs the gaps.
  const sha256 = await downloadIntoPart(job, part, update ? request : readOn);
  if (sha256 !== pinned && !isAllNew) {
    const reason = `the bytes have the digest ${sha256ToDigest(sha256)}`;
    if (update) emit({ type: "update_declined", image: name, reason });
    await part.clear();
    return await downloadHttpsImage({ ...job, base: undefined }, url, size);
  }
  const hashedFile = await part.markComplete();
  return { path: part.path, fileName, bytes: size, sha256, hashedFile, update };
}

async function* fetchIndexBeside(
  image: URL,
  client: HttpClient,
  job: FetchJob,
): AsyncGenerator<Uint8Array> {
  const url = new URL(image);
  url.pathname += CHUNK_INDEX_SUFFIX;
  const limits = withOptionalRequestTimeout(job);
  yield await downloadSmallFile(url, client, CHUNK_INDEX.maxBytes, limits);
}

async function downloadWithoutResume(
  job: FetchJob,
  transfer: Transfer,
  fileName: string,
  size: number,
): Promise<FetchedImage> {
  const { dir, env } = job;
  const path = join(dir, fileName);
  // Rejects a bad TOOLSMITH_DIGEST before the transfer starts.
  const engine = selectDigestEngine(size, env);
  const total = size < Infinity ? size : null;
  // An interrupted run leaves it beside a partial download that can be resumed.
  await removeTree(path);
  const progress = reportTransferStart(job, { total });
  await using sync = openIncrementalFileSync(path);
  using file = await Deno.open(path, { write: true, createNew: true });
  let [bytes, checked] = [0, 0];
  const target: TransferTarget = {
    size,
    missingExtents: ([from, to] = [0, size]) =>
      bytes >= to ? [] : [[Math.max(from, bytes), to]],
    openWriter: () => Promise.resolve({ write, [Symbol.dispose]() {} }),
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
  const written = transfer.fill(target, () => progress.reportBytes(bytes));
  const { sha256, hashed } = await hashFile(path, { engine, written });
  await sync.settled();
  progress.reportEnd(bytes);
  return { path, fileName, bytes, sha256, hashedFile: hashed };
}
