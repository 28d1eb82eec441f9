/**
 * Which connection reads which bytes of a blob.
 *
 * Pieces are handed out in order, so that the digest can be computed while the
 * rest arrives. When none is left, a connection that is done takes over what a
 * slower one would be late with.
 *
 * @module
 */
import type { Extent } from "../system/extents.ts";

/** Bytes that one connection reads. */
export interface Piece {
  /** The first byte that has not arrived. */
  at: number;
  /** Where it ends; another connection may take its end over. */
  to: number;
  /** Aborted when all of its rest was taken over. */
  readonly taken: AbortController;
}

/** The pieces of one transfer. */
export interface RangePlan {
  /** Whether nothing is being read any more, and nothing is left. */
  readonly done: boolean;
  /**
   * Hands out bytes to read.
   *
   * @param rate How fast the connection is, in bytes a millisecond, if known.
   */
  take(rate: number | undefined): Piece | undefined;
  /** Notes that bytes of a piece have arrived. */
  arrived(piece: Piece, bytes: number): void;
  /** Ends a piece; what has not been written of it is handed out again. */
  end(piece: Piece, unwritten: Extent[]): void;
}

const MIB = 1024 * 1024;
/** A request's round trip must cost little, and the end come evenly. */
const SMALLEST = 4 * MIB;
const LARGEST = 32 * MIB;
/** How long a connection should be busy with a piece, in milliseconds. */
const PIECE_MS = 1000;
/** Only what takes so much longer is taken over, in milliseconds: what is on the way is lost. */
const WORTH_TAKING_MS = 500;
/** A connection that has just begun has no rate yet, in milliseconds. */
const JUDGED_AFTER_MS = 500;
/** How many times as fast the connection must be that takes it over. */
const FASTER = 2;
/** A connection without a byte for so long is left nothing, in milliseconds. */
const SILENT_MS = 2000;
/**
 * So that an abort of the plan's is never mistaken for another's. A text: for an
 * error that is made while modules load, the whole program is compiled once more.
 */
const TAKEN = "another connection took the piece over";

/** A piece that is being read. */
interface Reading {
  since: number;
  heard: number;
  bytes: number;
  /** Taken over from a silent connection: until a byte arrives, this one waits. */
  again: boolean;
}

/**
 * Plans the reading of what is missing.
 *
 * @param gaps The bytes that are missing, in order.
 * @param connections How many read at the same time.
 * @param now The clock, in milliseconds.
 * @returns The plan.
 */
export function rangePlan(
  gaps: readonly Extent[],
  connections: number,
  now: () => number = performance.now.bind(performance),
): RangePlan {
  let waiting: Extent[] = [...gaps];
  const readings = new Map<Piece, Reading>();

  function begin(at: number, to: number, again = false): Piece {
    const piece = { at, to, taken: new AbortController() };
    readings.set(piece, { since: now(), heard: now(), bytes: 0, again });
    return piece;
  }

  function takeOver(rate: number): Piece | undefined {
    const found = slowest(readings, rate, now());
    if (!found) return undefined;
    const { piece, left } = found;
    const from = piece.at + left;
    const taken = begin(from, piece.to, left === 0);
    piece.to = from;
    if (left === 0) piece.taken.abort(TAKEN);
    return taken;
  }

  return {
    get done() {
      return waiting.length === 0 && readings.size === 0;
    },
    take(rate) {
      const first = waiting.shift();
      if (!first) return takeOver(rate ?? 0);
      const left = waiting.reduce((sum, [from, to]) => sum + to - from, 0) +
        first[1] - first[0];
      const fair = Math.min(
        (rate ?? 0) * PIECE_MS,
        left / (2 * connections),
        LARGEST,
      );
      const to = Math.min(
        first[0] + Math.ceil(Math.max(fair, SMALLEST)),
        first[1],
      );
      if (to < first[1]) waiting.unshift([to, first[1]]);
      return begin(first[0], to);
    },
    arrived(piece, bytes) {
      const reading = readings.get(piece);
      piece.at += bytes;
      if (!reading) return;
      reading.heard = now();
      reading.bytes += bytes;
    },
    end(piece, unwritten) {
      readings.delete(piece);
      waiting = [...unwritten, ...waiting].sort((a, b) => a[0] - b[0]);
    },
  };
}

/** Finds the piece that will be late, and how much of it is left to its reader. */
function slowest(
  readings: Map<Piece, Reading>,
  rate: number,
  time: number,
): { piece: Piece; left: number } | undefined {
  let found: { piece: Piece; left: number; ms: number } | undefined;
  for (const [piece, { since, heard, bytes, again }] of readings) {
    // A server that is slow to answer would be asked for ever otherwise.
    const isSilent = time - heard > SILENT_MS && (bytes > 0 || !again);
    const age = time - since;
    const theirs = isSilent ? 0 : bytes / age;
    const rest = piece.to - piece.at;
    const ms = rest / theirs;
    const isSlow = isSilent ||
      bytes > 0 && age >= JUDGED_AFTER_MS && rate > theirs * FASTER &&
        ms > WORTH_TAKING_MS;
    if (!isSlow) continue;
    // It is left what it can read until both are done.
    const left = isSilent ? 0 : Math.ceil(rest * theirs / (theirs + rate));
    if (left < rest && ms > (found?.ms ?? 0)) found = { piece, left, ms };
  }
  return found;
}
