/**
 * Downloads a file from a byte source: over several connections if the source
 * serves ranges, with retries that resume at the first missing byte.
 */
import { ToolsmithError } from "../errors.ts";
import type { Extent } from "../system/extents.ts";
import { readBodyChunks } from "../system/http_body.ts";
import { createRetryBudget, type RetryOptions } from "../system/retry.ts";
import { startStallTimer } from "../system/stall_timer.ts";
import { abortable, anySignal, sleep } from "../system/time.ts";
import { planRanges, RangePiece } from "./_range_plan.ts";
import type { ByteSource, RangeResponse } from "./byte_source.ts";

export interface TransferOptions extends RetryOptions {
  /** Highest number of connections. @default {1} */
  connections?: number;
  /** Time without a byte after which a connection has stalled, in milliseconds. @default {60_000} */
  stallTimeoutMs?: number;
}

/** Receives the bytes of a download: a part file, or a file of unknown size. */
export interface TransferTarget {
  /** Size of the whole file, in bytes; `Infinity` if unknown. */
  readonly size: number;
  /** Returns the missing byte ranges, in order. */
  missingExtents(within?: Extent): Extent[];
  /** Opens the target for the writes of one connection. */
  openWriter(): Promise<TargetWriter>;
}

interface TargetWriter extends Disposable {
  write(position: number, bytes: Uint8Array): void | Promise<void>;
}

interface OpenResponse extends RangeResponse {
  chunks: AsyncGenerator<Uint8Array<ArrayBuffer>>;
  cancel(): void;
}

/** How often an idle connection looks for a piece to take over. */
const IDLE_CONNECTION_POLL_MS = 20;

/** One download. Disposing aborts its requests. */
export type Transfer = ReturnType<typeof createTransfer>;

/** Sends no request yet. */
export function createTransfer(source: ByteSource, options: TransferOptions) {
  const { connections = 1, stallTimeoutMs } = options;
  const { displayName, maxBytes } = source;
  const stop = new AbortController();
  const signal = anySignal(options.signal, stop.signal);
  /** Shows the retry budget whether there was progress. */
  let bytesWritten = 0;
  const limits = { ...options, signal };
  const retryBudget = createRetryBudget(limits, () => bytesWritten);
  let openResponse: OpenResponse | undefined;

  async function requestPiece(
    { at, to, takeover }: RangePiece,
  ): Promise<OpenResponse> {
    signal.throwIfAborted();
    const timer = startStallTimer(`download ${displayName}`, {
      stallTimeoutMs,
      signal: anySignal(signal, takeover.signal),
    });
    try {
      const response = await source.requestRange(at, to, timer.signal);
      const chunks = readBodyChunks(response.body, timer, displayName);
      const cancel = () => {
        takeover.abort();
        // A body that is not read yet ignores the signal.
        response.body.cancel().catch(() => {});
      };
      return { ...response, chunks, cancel };
    } finally {
      timer.pause();
    }
  }

  /**
   * Requests all bytes from an offset, to learn the size and the first bytes, at least
   * `headBytes` or all; {@linkcode fill} then reads on from the same response.
   */
  async function openAndPeek(from: number, headBytes: number) {
    while (true) {
      openResponse?.cancel();
      await retryBudget.waitForBackoff();
      try {
        const piece = new RangePiece(from, Infinity, performance.now());
        const open = openResponse = await requestPiece(piece);
        const head = await peekBytes(open, headBytes);
        return { start: open.start, end: open.end, head };
      } catch (error) {
        retryBudget.recordFailure(error);
      }
    }
  }

  /**
   * Downloads the missing bytes of a target, and calls `onBytes` whenever bytes have
   * been written. The first response decides: after the requested range, all
   * connections start; a whole file, which an empty pull-through cache sends, is read
   * as a stream. Bytes stay in the target after a failure, and are untrusted until the
   * caller has compared the digest.
   */
  async function fill(target: TransferTarget, onBytes = () => {}) {
    const plan = planRanges(target.missingExtents(), connections);
    const servesRanges = Promise.withResolvers<void>();

    /**
     * Writes a response to the target, up to where another connection took over.
     * Returns the speed, in bytes per millisecond.
     */
    async function copyToTarget(
      piece: RangePiece,
      chunks: OpenResponse["chunks"],
    ): Promise<number> {
      const [from, requestedEnd] = [piece.at, piece.to];
      const limit = Math.min(requestedEnd, maxBytes);
      const startedAt = performance.now();
      using writer = await target.openWriter();
      for await (const chunk of chunks) {
        const start = piece.at;
        if (start + chunk.length > limit) throw source.tooManyBytesError(limit);
        // Before the write: received bytes must not be taken over meanwhile.
        const end = Math.min(start + chunk.length, piece.to);
        plan.recordReceivedBytes(piece, end - start);
        for (const [at, to] of target.missingExtents([start, end])) {
          await writer.write(at, chunk.subarray(at - start, to - start));
          bytesWritten += to - at;
        }
        onBytes();
        if (piece.at >= piece.to && piece.to < requestedEnd) break;
      }
      // The end of a body of unknown length is the end of the file.
      if (piece.to === Infinity) piece.to = piece.at;
      if (piece.at < piece.to) {
        const progress = `${piece.at} of ${target.size} bytes`;
        throw transferInterruptedError(
          `The transfer from ${displayName} was interrupted at ${progress}`,
        );
      }
      return (piece.at - from) / Math.max(performance.now() - startedAt, 1);
    }

    /**
     * Downloads pieces over one connection until none is left. The first connection
     * reports ranges with `onRange`, and accepts the whole file before the others start.
     */
    async function runConnection(onRange?: () => void) {
      let acceptsWhole = onRange !== undefined;
      let rate = 0;
      while (!plan.isDone) {
        await retryBudget.waitForBackoff();
        const piece = plan.takePiece(rate);
        if (!piece) {
          await sleep(IDLE_CONNECTION_POLL_MS, signal);
          continue;
        }
        const from = piece.at;
        // A takeover lowers the piece's end while the response is on its way.
        const requestedEnd = piece.to;
        try {
          const open = openResponse ?? await requestPiece(piece);
          openResponse = undefined;
          if (open.start === from && open.end <= requestedEnd) {
            acceptsWhole &&= connections === 1;
            onRange?.();
          } else if (acceptsWhole) {
            plan.widenPiece(piece, [open.start, target.size]);
          } else {
            open.cancel();
            // The other connections read ranges; a retry may get one again.
            throw transferInterruptedError(
              `${displayName} sent the whole file instead of the bytes from ${from} on`,
            );
          }
          rate = await copyToTarget(piece, open.chunks);
        } catch (error) {
          rate = 0;
          const isTakenOver = error === piece.takeover.signal.reason;
          if (!isTakenOver) retryBudget.recordFailure(error);
        } finally {
          plan.endPiece(piece, target.missingExtents([from, piece.to]));
        }
      }
    }

    const workers = [
      runConnection(servesRanges.resolve).then(servesRanges.resolve),
    ];
    while (workers.length < connections) {
      const started = abortable(servesRanges.promise, signal);
      workers.push(started.then(() => runConnection()));
    }
    try {
      await Promise.all(workers);
    } finally {
      stop.abort();
      // The caller may close the target: wait for the pending writes.
      await Promise.allSettled(workers);
    }
  }

  return {
    openAndPeek,
    fill,
    [Symbol.dispose]() {
      stop.abort();
      openResponse?.cancel();
    },
  };
}

export function transferInterruptedError(message: string): ToolsmithError {
  const hint = "try again";
  return new ToolsmithError("transfer_interrupted", message, { hint });
}

/** Reads the first bytes; a later read of the response returns them again. */
async function peekBytes(open: OpenResponse, length: number) {
  const { chunks } = open;
  let head = new Uint8Array();
  while (head.length < length) {
    const { done, value } = await chunks.next();
    if (done) break;
    head = await new Blob([head, value]).bytes();
  }
  open.chunks = (async function* () {
    if (head.length > 0) yield head;
    yield* chunks;
  })();
  return head;
}
