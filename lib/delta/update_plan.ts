/** Plans which bytes of an image are copied from an older one. */
import type { ChunkIndex } from "./chunk_index.ts";
import { createChunkTable, viewOf } from "./_chunk_table.ts";
import { RECORD_BYTES } from "./chunker.ts";

/** Bytes that both images have. */
export interface CopyRun {
  /** Offset in the new image. */
  at: number;
  /** Offset in the older image. */
  from: number;
  length: number;
}

/** Downloading fewer bytes costs less than a further request. */
const MIN_COPY_BYTES = 64 * 1024;
/** Up to this number of gaps, requests hardly cost time. */
const FEW_GAPS = 32;
/** What may be downloaded in addition, to have fewer gaps. */
const MAX_EXTRA_SHARE = 0.005;
/** The record of a partial download must not exceed 1 MiB. */
const MAX_GAPS = 16_000;

/** Looks for the chunks of an index in an older image. */
export function createChunkMatcher({ records }: ChunkIndex) {
  const view = viewOf(records);
  const find = createChunkTable(records);
  /** Offset of each first chunk in the older image; -1 if not found. */
  const sources = new Float64Array(records.length / RECORD_BYTES).fill(-1);
  let offset = 0;
  return {
    /** Adds the next records of the older image; returns its size so far. */
    add(older: Uint8Array): number {
      const olderView = viewOf(older);
      for (let record = 0; record < older.length; record += RECORD_BYTES) {
        const chunk = find(olderView, record);
        if (sources[chunk] === -1) sources[chunk] = offset;
        offset += olderView.getUint16(record) + 1;
      }
      return offset;
    },
    /** Returns what to copy, in the order of the new image. */
    plan(): CopyRun[] {
      const stretches: CopyRun[][] = [];
      let at = 0;
      for (let record = 0; record < records.length; record += RECORD_BYTES) {
        const from = sources[find(view, record)];
        const length = view.getUint16(record) + 1;
        const run = stretches.at(-1)?.at(-1);
        const follows = run && run.at + run.length === at;
        if (from >= 0) {
          if (!follows) stretches.push([{ at, from, length }]);
          else if (run.from + run.length === from) run.length += length;
          else stretches.at(-1)!.push({ at, from, length });
        }
        at += length;
      }
      const lengths = stretches.map(countCopyBytes)
        .filter((length) => length >= MIN_COPY_BYTES).sort((a, b) => a - b);
      let [least, spare] = [MIN_COPY_BYTES, at * MAX_EXTRA_SHARE];
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

/** Copies runs; leaves out what the older image lacks by now. */
export async function copyRuns(
  older: Deno.FsFile,
  runs: CopyRun[],
  write: (at: number, bytes: Uint8Array<ArrayBuffer>) => void,
): Promise<void> {
  const buffer = new Uint8Array(1024 * 1024);
  for (const { at, from, length } of runs) {
    await older.seek(from, Deno.SeekMode.Start);
    for (let done = 0; done < length;) {
      const count = await older.read(buffer.subarray(0, length - done));
      if (count === null) break;
      write(at + done, buffer.subarray(0, count));
      done += count;
    }
  }
}
