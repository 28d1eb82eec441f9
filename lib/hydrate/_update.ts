/**
 * Copies what an older image holds, too, so that only the rest is downloaded.
 */
import {
  findChunkIndex,
  MIN_INDEXED_IMAGE_BYTES,
  readFileRecords,
} from "../delta/chunk_index.ts";
import {
  countCopyBytes,
  createChunkMatcher,
  readRuns,
} from "../delta/update_plan.ts";
import type { UpdateSize } from "../events.ts";
import type { PartFile } from "../system/part_file.ts";
import { withOptionalRequestTimeout } from "../system/stall_timer.ts";
import { anySignal } from "../system/time.ts";
import type { FetchJob, PartDownload } from "./_fetch_job.ts";

/** Reading or downloading this much shows how long all of it takes. */
const SAMPLE_BYTES = 4 * 1024 * 1024;
const MAX_DOWNLOAD_SHARE = 0.7;
/** Such a download is over before reading the base would have paid off. */
const FAST_DOWNLOAD_MS = 1000;
const AS_FAST = "the download is as fast";
/** On a slow link, so little arrives in this time that it hardly counts. */
const PROBE_MS = 30;

/**
 * Copies from the base into a part file. Reports whatever prevents that: the whole
 * image is downloaded then. The caller compares the digest of the result.
 *
 * @param indexes Files, read on demand; one of them may be the image's chunk index.
 * @returns `undefined` if nothing was copied.
 * @throws The signal's reason.
 */
export async function copyFromBase(
  job: FetchJob,
  part: PartFile,
  indexes: AsyncIterable<Uint8Array>,
  download: PartDownload,
): Promise<UpdateSize | undefined> {
  const { image: { name: image }, base, emit, signal } = job;
  const { size: total } = part;
  const isComplete = part.presentBytes === total;
  if (!base || isComplete || total < MIN_INDEXED_IMAGE_BYTES) return undefined;
  try {
    const index = await findChunkIndex(indexes, part.expected);
    const matcher = createChunkMatcher(index);
    // Kept open, as another process may prune it.
    using older = await Deno.open(base.path);
    const { size: baseBytes } = await older.stat();
    let downloadMs = base.isGiven
      ? Infinity
      : await estimateDownloadMs(job, part, download);
    if (downloadMs < FAST_DOWNLOAD_MS) throw new Error(AS_FAST);
    const startedAt = performance.now();
    for await (const records of readFileRecords(older, { signal })) {
      const read = matcher.add(records);
      if (read < SAMPLE_BYTES) continue;
      const readMs = (performance.now() - startedAt) * baseBytes / read;
      // Half of the image may have changed.
      if (readMs > downloadMs / 2) throw new Error(AS_FAST);
      // One sample is enough.
      downloadMs = Infinity;
    }
    const runs = matcher.plan();
    const share = 1 - countCopyBytes(runs) / total;
    if (share > MAX_DOWNLOAD_SHARE) {
      throw new Error(`${Math.round(share * 100)} % differs from ${base.name}`);
    }
    using writer = await part.openWriter();
    for await (const { at, bytes } of readRuns(older, runs)) {
      signal?.throwIfAborted();
      // What was downloaded before is kept.
      for (const [from, to] of part.missingExtents([at, at + bytes.length])) {
        writer.write(from, bytes.subarray(from - at, to - at));
      }
    }
    const bytes = total - part.presentBytes;
    const update = { from: base.name, bytes, total };
    emit({ type: "update_start", image, ...update });
    return update;
  } catch (error) {
    signal?.throwIfAborted();
    const { message: reason } = error as Error;
    emit({ type: "update_declined", image, reason });
    return undefined;
  }
}

/** Downloads up to 4 MiB, or for 30 ms, and estimates how long the rest takes. */
async function estimateDownloadMs(
  job: FetchJob,
  part: PartFile,
  download: PartDownload,
): Promise<number> {
  const stop = new AbortController();
  const signal = anySignal(job.signal, stop.signal);
  let first: { at: number; bytes: number } | undefined;
  const onBytesWritten = () => {
    if (!first) setTimeout(() => stop.abort(stop), PROBE_MS);
    first ??= { at: performance.now(), bytes: part.presentBytes };
    if (part.presentBytes - first.bytes >= SAMPLE_BYTES) stop.abort(stop);
  };
  const probe = { ...job, connections: 1, retries: 0, signal };
  const limits = withOptionalRequestTimeout(probe);
  await download({ ...limits, onBytesWritten }).catch((error) => {
    if (error !== stop) throw error;
  });
  const { at, bytes } = first!;
  const { size, presentBytes } = part;
  const rate = (presentBytes - bytes) / (performance.now() - at);
  // All may be there after one write, which tells no rate.
  return (size - presentBytes) / rate || 0;
}
