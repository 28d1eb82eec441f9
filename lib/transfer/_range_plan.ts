/**
 * Schedules the range requests of a download over several connections.
 *
 * Pieces are handed out in file order, so that the digest can be computed while
 * later bytes arrive. When none is left, an idle connection takes over the end of
 * the piece that would finish last.
 */
import { countExtentBytes, type Extent } from "../system/extents.ts";

/** A byte range that one connection downloads. */
export class RangePiece {
  /** Aborted when another connection has taken over all remaining bytes. */
  readonly takeover = new AbortController();
  receivedBytes = 0;

  constructor(
    /** Offset of the first byte that has not arrived. */
    public at: number,
    /** End offset; lowered when another connection takes over the end. */
    public to: number,
    readonly startedAt: number,
    /** Taken over from a silent connection, so not again before a byte arrives. */
    readonly takenFromSilent = false,
    public lastByteTime = startedAt,
  ) {}
}

const MIB = 1024 * 1024;
/** Large enough to amortize a round trip, small enough for an even finish. */
const MIN_PIECE_BYTES = 4 * MIB;
const MAX_PIECE_BYTES = 32 * MIB;
const TARGET_PIECE_MS = 1000;
/** A takeover discards bytes in flight, so less time left is not worth it. */
const MIN_TAKEOVER_TIME_LEFT_MS = 500;
/** Below this age, the measured rate of a piece says nothing. */
const MIN_RATE_SAMPLE_MS = 500;
const MIN_TAKEOVER_SPEED_RATIO = 2;
/** After this time without a byte, all remaining bytes are taken over. */
const SILENT_CONNECTION_MS = 2000;

/**
 * Plans the download of the missing bytes, in order. `now` is a clock, in milliseconds.
 */
export function planRanges(
  gaps: readonly Extent[],
  connections: number,
  now: () => number = performance.now.bind(performance),
) {
  /** The last first, so that taking one does not move the others. */
  let waiting = gaps.toReversed();
  let waitingBytes = countExtentBytes(gaps);
  const active = new Set<RangePiece>();

  function begin(at: number, to: number, takenFromSilent = false): RangePiece {
    const piece = new RangePiece(at, to, now(), takenFromSilent);
    active.add(piece);
    return piece;
  }

  /** Takes over the end of the piece that would finish last. */
  function takeOver(rate: number): RangePiece | undefined {
    const time = now();
    let last: { piece: RangePiece; kept: number; ms: number } | undefined;
    for (const piece of active) {
      const { at, to, receivedBytes, takenFromSilent } = piece;
      // Without `takenFromSilent`, a slow server would get the same request endlessly.
      const isSilent = time - piece.lastByteTime > SILENT_CONNECTION_MS &&
        (receivedBytes > 0 || !takenFromSilent);
      const age = time - piece.startedAt;
      const pieceRate = isSilent ? 0 : receivedBytes / age;
      const ms = (to - at) / pieceRate;
      const isSlow = isSilent ||
        receivedBytes > 0 && age >= MIN_RATE_SAMPLE_MS &&
          rate > pieceRate * MIN_TAKEOVER_SPEED_RATIO &&
          ms > MIN_TAKEOVER_TIME_LEFT_MS;
      if (!isSlow) continue;
      // Both connections should finish at the same time.
      const kept = isSilent
        ? 0
        : Math.ceil((to - at) * pieceRate / (pieceRate + rate));
      if (at + kept < to && ms > (last?.ms ?? 0)) last = { piece, kept, ms };
    }
    if (!last) return undefined;
    const { piece, kept } = last;
    const from = piece.at + kept;
    const rest = begin(from, piece.to, kept === 0);
    piece.to = from;
    if (kept === 0) piece.takeover.abort();
    return rest;
  }

  return {
    /** Whether no piece is being downloaded and no byte is missing. */
    get isDone(): boolean {
      return waiting.length === 0 && active.size === 0;
    },
    /**
     * Returns the next piece; `undefined` if there is none to take over either. `rate`
     * is the connection's speed in bytes per millisecond, 0 if unknown.
     */
    takePiece(rate = 0): RangePiece | undefined {
      const first = waiting.pop();
      if (!first) return takeOver(rate);
      const [from, end] = first;
      const share = waitingBytes / (2 * connections);
      const fair = connections === 1
        ? Infinity
        : Math.min(rate * TARGET_PIECE_MS, share, MAX_PIECE_BYTES);
      const bytes = Math.ceil(Math.max(fair, MIN_PIECE_BYTES));
      const to = Math.min(from + bytes, end);
      if (to < end) waiting.push([to, end]);
      waitingBytes -= to - from;
      return begin(from, to);
    },
    recordReceivedBytes(piece: RangePiece, bytes: number): void {
      piece.at += bytes;
      piece.lastByteTime = now();
      piece.receivedBytes += bytes;
    },
    /** Makes a piece all that is left to download. */
    widenPiece(piece: RangePiece, [from, to]: Extent): void {
      piece.at = from;
      piece.to = to;
      waiting = [];
      waitingBytes = 0;
    },
    /** Ends a piece; its unwritten bytes are handed out again. */
    endPiece(piece: RangePiece, unwritten: Extent[]): void {
      active.delete(piece);
      if (unwritten.length === 0) return;
      waitingBytes += countExtentBytes(unwritten);
      waiting = [...waiting, ...unwritten].sort((a, b) => b[0] - a[0]);
    },
  };
}
