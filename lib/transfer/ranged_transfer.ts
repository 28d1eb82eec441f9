/**
 * Downloads a file from a byte source: over several connections if the source
 * serves ranges, with retries that resume at the first missing byte.
 */
import { ToolsmithError } from "../errors.ts";
import type { Extent } from "../system/extents.ts";
import { readBodyChunks } from "../system/http_body.ts";
import {
  createRetryBudget,
  type RetryBudget,
  type RetryOptions,
} from "../system/retry.ts";
import { startStallTimer } from "../system/stall_timer.ts";
import { abortable, anySignal, sleep } from "../system/time.ts";
import { planRanges, RangePiece, type RangePlan } from "./_range_plan.ts";
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
  /** Marks the target as complete, after a body of unknown length. */
  markEnded?(): void;
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
export class Transfer implements Disposable {
  readonly #stopController = new AbortController();
  readonly #signal: AbortSignal;
  readonly #retryBudget: RetryBudget;
  /** Shows the retry budget whether there was progress. */
  #bytesWritten = 0;
  #openResponse: OpenResponse | undefined;
  #onBytesWritten = () => {};

  /** Prepares a download; sends no request yet. */
  constructor(
    private readonly source: ByteSource,
    private readonly options: TransferOptions,
  ) {
    this.#signal = anySignal(options.signal, this.#stopController.signal);
    const limits = { ...options, signal: this.#signal };
    this.#retryBudget = createRetryBudget(limits, () => this.#bytesWritten);
  }

  /**
   * Requests all bytes from an offset, to learn the size and the first bytes, at least
   * `headBytes` or all; {@linkcode fill} then reads on from the same response.
   */
  async openAndPeek(from: number, headBytes: number) {
    while (true) {
      this.#openResponse?.cancel();
      await this.#retryBudget.waitForBackoff();
      try {
        const piece = new RangePiece(from, Infinity, performance.now());
        const open = this.#openResponse = await this.#requestPiece(piece);
        const head = await peekBytes(open, headBytes);
        return { start: open.start, end: open.end, head };
      } catch (error) {
        this.#retryBudget.recordFailure(error);
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
  async fill(target: TransferTarget, onBytes = () => {}): Promise<void> {
    this.#onBytesWritten = onBytes;
    const { connections = 1 } = this.options;
    const plan = planRanges(target.missingExtents(), connections);
    const servesRanges = Promise.withResolvers<void>();
    const workers = [
      this.#runConnection(target, plan, servesRanges.resolve)
        .then(servesRanges.resolve),
    ];
    while (workers.length < connections) {
      const started = abortable(servesRanges.promise, this.#signal);
      workers.push(started.then(() => this.#runConnection(target, plan)));
    }
    try {
      await Promise.all(workers);
    } finally {
      this.#stopController.abort();
      // The caller may close the target: wait for the pending writes.
      await Promise.allSettled(workers);
    }
  }

  [Symbol.dispose](): void {
    this.#stopController.abort();
    this.#openResponse?.cancel();
  }

  /**
   * Downloads pieces over one connection until none is left. The first connection
   * reports ranges with `onRange`, and accepts the whole file before the others start.
   */
  async #runConnection(
    target: TransferTarget,
    plan: RangePlan,
    onRange?: () => void,
  ) {
    const { connections = 1 } = this.options;
    let acceptsWhole = onRange !== undefined;
    let rate = 0;
    while (!plan.isDone) {
      await this.#retryBudget.waitForBackoff();
      const piece = plan.takePiece(rate);
      if (!piece) {
        await sleep(IDLE_CONNECTION_POLL_MS, this.#signal);
        continue;
      }
      const from = piece.at;
      // A takeover lowers the piece's end while the response is on its way.
      const requestedEnd = piece.to;
      try {
        const open = this.#openResponse ?? await this.#requestPiece(piece);
        this.#openResponse = undefined;
        if (open.start === from && open.end <= requestedEnd) {
          acceptsWhole &&= connections === 1;
          onRange?.();
        } else if (acceptsWhole) {
          plan.widenPiece(piece, [open.start, target.size]);
        } else {
          open.cancel();
          // The other connections read ranges; a retry may get one again.
          const { displayName } = this.source;
          throw transferInterruptedError(
            `${displayName} sent the whole file instead of the bytes from ${from} on`,
          );
        }
        rate = await this.#copyToTarget(target, plan, piece, open);
      } catch (error) {
        rate = 0;
        const isTakenOver = error === piece.takeover.signal.reason;
        if (!isTakenOver) this.#retryBudget.recordFailure(error);
      } finally {
        plan.endPiece(piece, target.missingExtents([from, piece.to]));
      }
    }
  }

  async #requestPiece(piece: RangePiece): Promise<OpenResponse> {
    this.#signal.throwIfAborted();
    const { displayName } = this.source;
    const { at, to, takeover } = piece;
    const timer = startStallTimer(`download ${displayName}`, {
      stallTimeoutMs: this.options.stallTimeoutMs,
      signal: anySignal(this.#signal, takeover.signal),
    });
    try {
      const response = await this.source.requestRange(at, to, timer.signal);
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
   * Writes a response to the target, up to where another connection took over. Returns
   * the speed, in bytes per millisecond.
   */
  async #copyToTarget(
    target: TransferTarget,
    plan: RangePlan,
    piece: RangePiece,
    { chunks }: OpenResponse,
  ): Promise<number> {
    const { displayName, maxBytes } = this.source;
    const [from, requestedEnd] = [piece.at, piece.to];
    const startedAt = performance.now();
    using writer = await target.openWriter();
    for await (const chunk of chunks) {
      const start = piece.at;
      const limit = Math.min(requestedEnd, maxBytes);
      if (start + chunk.length > limit) {
        throw this.source.tooManyBytesError(limit);
      }
      // Before the write: received bytes must not be taken over meanwhile.
      const end = Math.min(start + chunk.length, piece.to);
      plan.recordReceivedBytes(piece, end - start);
      for (const [at, to] of target.missingExtents([start, end])) {
        await writer.write(at, chunk.subarray(at - start, to - start));
        this.#bytesWritten += to - at;
      }
      this.#onBytesWritten();
      if (piece.at >= piece.to && piece.to < requestedEnd) break;
    }
    if (piece.to === Infinity) target.markEnded?.();
    else if (piece.at < piece.to) {
      const progress = `${piece.at} of ${target.size} bytes`;
      throw transferInterruptedError(
        `The transfer from ${displayName} was interrupted at ${progress}`,
      );
    }
    return (piece.at - from) / Math.max(performance.now() - startedAt, 1);
  }
}

function transferInterruptedError(message: string): ToolsmithError {
  return new ToolsmithError("transfer_interrupted", message, {
    hint: "try again",
  });
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
