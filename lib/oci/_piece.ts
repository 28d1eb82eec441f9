/**
 * Reads the bytes of one piece of a blob into its file, over one connection.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import {
  type StallWatch,
  watchedChunks,
  watchStall,
} from "../system/http_stall.ts";
import type { PartFile } from "../system/part_file.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";
import type { BlobAnswer, BlobSource } from "./_blob_source.ts";
import type { Piece, RangePlan } from "./_range_plan.ts";

/** What all pieces of a transfer share. */
export interface PieceContext {
  /** Where the blob is. */
  source: BlobSource;
  /** The file that it is written to. */
  part: PartFile;
  /** Who reads what. */
  plan: RangePlan;
  /** Time without a byte after which a connection is aborted, in milliseconds. */
  stallMs: number;
  /** Called whenever bytes have been written. */
  onBytes: () => void;
  /** Ends the transfer when aborted. */
  signal: AbortSignal;
}

/** A piece whose bytes begin to arrive. */
export interface OpenPiece {
  piece: Piece;
  answer: BlobAnswer;
  watch: StallWatch;
}

/**
 * Asks for a piece.
 *
 * @param context The transfer.
 * @param piece The piece; on failure it goes back into the plan.
 * @returns The answer; the caller reads it. `undefined` when another connection
 * took the piece over first.
 */
export async function openPiece(
  context: PieceContext,
  piece: Piece,
): Promise<OpenPiece | undefined> {
  const { source, stallMs, signal, plan, part } = context;
  const taken = piece.taken.signal;
  const watch = watchStall(source.host, stallMs, signal, taken);
  try {
    const { at, to } = piece;
    const answer = await source.open(at, to, watch.signal);
    return { piece, answer, watch };
  } catch (thrown) {
    plan.end(piece, part.gaps([piece.at, piece.to]));
    const error = watch.explain(thrown, true);
    if (error !== taken.reason) throw error;
  } finally {
    watch.pause();
  }
}

/**
 * Reads an open piece to its end, or to where another connection has taken it
 * over. What could not be read goes back into the plan.
 *
 * @param context The transfer.
 * @param open The piece.
 * @returns How fast it was, in bytes a millisecond.
 */
export async function readPiece(
  context: PieceContext,
  { piece, answer, watch }: OpenPiece,
): Promise<number> {
  const { part, plan, source: { host } } = context;
  const [from, asked] = [piece.at, piece.to];
  const begun = performance.now();
  try {
    using writer = await part.openWriter();
    for await (const bytes of watchedChunks(answer.body, watch)) {
      const position = piece.at;
      if (position + bytes.length > asked) {
        throw new RangesUnavailable(`${host} sends more than was asked`);
      }
      // Noted before it is written: what has arrived cannot be taken over.
      const own = bytes.subarray(0, piece.to - position);
      plan.arrived(piece, own.length);
      writer.write(position, own);
      context.onBytes();
      if (piece.at >= piece.to && piece.to < asked) break;
    }
    if (piece.at < piece.to) throw cutError(host, piece.at);
  } catch (thrown) {
    const error = watch.explain(thrown, true);
    if (error !== piece.taken.signal.reason) throw error;
  } finally {
    plan.end(piece, part.gaps([from, piece.to]));
  }
  return (piece.at - from) / Math.max(performance.now() - begun, 1);
}

/**
 * Reads an answer that holds the whole blob, and writes what the file lacks.
 *
 * @param context The transfer.
 * @param open The answer.
 */
export async function readWhole(
  context: PieceContext,
  { piece, answer, watch }: OpenPiece,
): Promise<void> {
  const { part, plan, source: { host } } = context;
  let position = 0;
  try {
    using writer = await part.openWriter();
    for await (const bytes of watchedChunks(answer.body, watch)) {
      const end = position + bytes.length;
      if (end > part.size) {
        throw new RangesUnavailable(
          `${host} sends more than ${part.size} bytes`,
        );
      }
      for (const [from, to] of part.gaps([position, end])) {
        writer.write(
          from,
          bytes.subarray(from - position, to - position),
        );
      }
      position = end;
      context.onBytes();
    }
    if (position < part.size) throw cutError(host, position);
  } catch (error) {
    throw watch.explain(error, true);
  } finally {
    plan.end(piece, []);
  }
}

function cutError(host: string, position: number): ToolsmithError {
  return new ToolsmithError(
    "transfer_interrupted",
    `The transfer from ${host} was cut at byte ${position}`,
    { hint: "try again" },
  );
}
