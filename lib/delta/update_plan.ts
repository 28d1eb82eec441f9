/** Plans which bytes of an image are copied from an older one. */
import type { ChunkIndex } from "./chunk_index.ts";
import { readChunks, RECORD_BYTES } from "./chunker.ts";

/** Bytes that both images have. */
export interface CopyRun {
  /** Offset in the new image. */
  at: number;
  /** Offset in the older image. */
  from: number;
  length: number;
}

/** Downloading fewer bytes costs less than a further request. */
const MIN_COPY_BYTES = 16 * 1024;
/** Up to this number of gaps, requests hardly cost time. */
const FEW_GAPS = 24;
/** What may be downloaded in addition, to have fewer gaps. */
const MAX_EXTRA_SHARE = 0.005;
/** The record of a partial download must not exceed 1 MiB. */
const MAX_GAPS = 16_000;

/** Looks for the chunks of an index in an older image. */
export function createChunkMatcher({ size, records }: ChunkIndex) {
  // Sorted: a `Map` of the million chunks of 20 GB would take ten times the memory.
  const hashes = new Float64Array(records.length / RECORD_BYTES);
  let count = 0;
  for (const { hash } of readChunks(records)) hashes[count++] = hash;
  hashes.sort();
  /** Offset in the older image of the first chunk with each hash; -1 if not found. */
  const sources = new Float64Array(count).fill(-1);
  let baseBytes = 0;
  return {
    /** Adds the next records of the older image; returns its size so far. */
    add(older: Uint8Array): number {
      for (const { hash, at, length } of readChunks(older, baseBytes)) {
        const nth = indexOfHash(hashes, hash);
        if (sources[nth] === -1) sources[nth] = at;
        baseBytes = at + length;
      }
      return baseBytes;
    },
    /** Returns what to copy, in the order of the new image. */
    plan(): CopyRun[] {
      const stretches: CopyRun[][] = [];
      for (const { hash, at, length } of readChunks(records)) {
        const from = sources[indexOfHash(hashes, hash)] ?? -1;
        if (from === -1) continue;
        const run = stretches.at(-1)?.at(-1);
        if (!run || run.at + run.length !== at) {
          stretches.push([{ at, from, length }]);
        } else if (run.from + run.length === from) run.length += length;
        else stretches.at(-1)!.push({ at, from, length });
      }
      const lengths = stretches.map(countCopyBytes)
        .filter((length) => length >= MIN_COPY_BYTES).sort((a, b) => a - b);
      let [least, spare] = [MIN_COPY_BYTES, size * MAX_EXTRA_SHARE];
      for (const [dropped, length] of lengths.entries()) {
        const kept = lengths.length - dropped;
        spare -= length;
        if (kept <= FEW_GAPS || kept <= MAX_GAPS && spare < 0) break;
        least = length + 1;
      }
      return stretches.filter((runs) => countCopyBytes(runs) >= least).flat();
    },
  };
}

export function countCopyBytes(runs: CopyRun[]): number {
  return runs.reduce((sum, { length }) => sum + length, 0);
}

function indexOfHash(sorted: Float64Array, hash: number): number {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = low + high >>> 1;
    if (sorted[middle] < hash) low = middle + 1;
    else high = middle;
  }
  return sorted[low] === hash ? low : -1;
}

/**
 * Yields the bytes of runs, each chunk with its offset in the new image; leaves out
 * what the older image lacks by now. Each chunk overwrites the previous one.
 */
export async function* readRuns(older: Deno.FsFile, runs: CopyRun[]) {
  const buffer = new Uint8Array(1024 * 1024);
  for (const { at, from, length } of runs) {
    await older.seek(from, Deno.SeekMode.Start);
    for (let done = 0; done < length;) {
      const count = await older.read(buffer.subarray(0, length - done));
      if (count === null) break;
      yield { at: at + done, bytes: buffer.subarray(0, count) };
      done += count;
    }
  }
}
