/**
 * Copies what an older image holds, too, so that only the rest is downloaded.
 */
import {
  findChunkIndex,
  MIN_INDEXED_IMAGE_BYTES,
  readFileRecords,
} from "../delta/chunk_index.ts";
import {
  copyRuns,
  countCopyBytes,
  createChunkMatcher,
} from "../delta/update_plan.ts";
import type { UpdateSize } from "../events.ts";
import { sha256ToDigest } from "../system/digest.ts";
import type { PartFile } from "../system/part_file.ts";
import { withOptionalRequestTimeout } from "../system/stall_timer.ts";
import { anySignal } from "../system/time.ts";
import type { FetchRequest, ResolvedFetchOptions } from "./_fetch_request.ts";

/** Reading or downloading this much shows how long all of it takes. */
const SAMPLE_BYTES = 4 * 1024 * 1024;
const MAX_DOWNLOAD_SHARE = 0.7;
/** Such a download is over before reading the base would have paid off. */
const FAST_DOWNLOAD_MS = 1000;
const AS_FAST = "the download is as fast";
/** On a slow link, so little arrives in this time that it hardly counts. */
const PROBE_MS = 30;

/** Where the image comes from. */
export interface UpdateSource {
  /** Returns files, one of which may be the image's chunk index. */
  readIndexes: () => AsyncIterable<Uint8Array>;
  /** Downloads what the part file lacks, until the signal is aborted. */
  download: (
    options: ResolvedFetchOptions & { onBytesWritten: () => void },
  ) => Promise<unknown>;
}

/**
 * Copies from the base into a part file. Reports whatever prevents that: the whole
 * image is downloaded then. The caller compares the digest of the result.
 *
 * @returns `undefined` if nothing was copied.
 * @throws The signal's reason.
 */
export async function copyFromBase(
  request: FetchRequest,
  options: ResolvedFetchOptions,
  part: PartFile,
  { readIndexes, download }: UpdateSource,
): Promise<UpdateSize | undefined> {
  const { image: { name: image, sha256 }, base } = request;
  const { emit, signal } = options;
  const { size: total } = part;
  const isComplete = part.presentBytes === total;
  if (!base || isComplete || total < MIN_INDEXED_IMAGE_BYTES) return undefined;
  try {
    const expected = { size: total, digest: sha256ToDigest(sha256) };
    const matcher = createChunkMatcher(
      await findChunkIndex(readIndexes(), expected),
    );
    // Kept open, as another process may prune it.
    using older = await Deno.open(base.path);
    const { size: baseBytes } = await older.stat();
    let isWorthwhile = base.isGiven;
    const downloadMs = isWorthwhile
      ? Infinity
      : await estimateDownloadMs(part, download, options);
    if (downloadMs < FAST_DOWNLOAD_MS) throw new Error(AS_FAST);
    const startedAt = performance.now();
    for await (const records of readFileRecords(older, { signal })) {
      const read = matcher.add(records);
      if (isWorthwhile || read < SAMPLE_BYTES) continue;
      const readMs = (performance.now() - startedAt) * baseBytes / read;
      // Half of the image may have changed.
      if (readMs > downloadMs / 2) throw new Error(AS_FAST);
      isWorthwhile = true;
    }
    const runs = matcher.plan();
    const share = 1 - countCopyBytes(runs) / total;
    if (share > MAX_DOWNLOAD_SHARE) {
      throw new Error(`${Math.round(share * 100)} % differs from ${base.name}`);
    }
    using writer = await part.openWriter();
    await copyRuns(older, runs, (at, bytes) => {
      signal?.throwIfAborted();
      // What was downloaded before is kept.
      for (const [from, to] of part.missingExtents([at, at + bytes.length])) {
        writer.write(from, bytes.subarray(from - at, to - at));
      }
    });
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
  part: PartFile,
  download: UpdateSource["download"],
  options: ResolvedFetchOptions,
): Promise<number> {
  const stop = new AbortController();
  const signal = anySignal(options.signal, stop.signal);
  let first: { at: number; bytes: number } | undefined;
  const onBytesWritten = () => {
    if (!first) setTimeout(() => stop.abort(stop), PROBE_MS);
    first ??= { at: performance.now(), bytes: part.presentBytes };
    if (part.presentBytes - first.bytes >= SAMPLE_BYTES) stop.abort(stop);
  };
  const limits = withOptionalRequestTimeout({ ...options, retries: 0, signal });
  await download({ ...limits, onBytesWritten }).catch((error) => {
    if (error !== stop) throw error;
  });
  const { at, bytes } = first!;
  const { size, presentBytes } = part;
  const rate = (presentBytes - bytes) / (performance.now() - at);
  // All may be there after one write, which tells no rate.
  return (size - presentBytes) / rate || 0;
}
