/**
 * Reads one blob by ranges, over several connections, into a file that may have
 * some of its bytes already.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import type { PartFile } from "../system/part_file.ts";
import type { RetryOptions } from "../system/retry.ts";
import { sleep } from "../system/time.ts";
import type { BlobSource } from "./_blob_source.ts";
import { type Patience, patience } from "./_patience.ts";
import {
  type OpenPiece,
  openPiece,
  type PieceContext,
  readPiece,
  readWhole,
} from "./_piece.ts";
import { rangePlan } from "./_range_plan.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";

/** What {@linkcode readBlob} takes. */
export interface ReadBlobOptions extends RetryOptions {
  /** How many connections there are at most. */
  connections: number;
  /** Time without a byte after which one is aborted, in milliseconds. */
  stallMs: number;
  /** Called whenever bytes have been written. */
  onBytes: () => void;
}

/** How often an idle connection looks for work, in milliseconds. */
const IDLE_MS = 20;

/**
 * Reads what a file lacks. The first answer decides: after a right 206 all
 * connections read; a 200 is read as the whole, which is what a cache sends that
 * is itself still empty. What has arrived stays in the file whatever happens;
 * nobody vouches for it until its digest has been compared.
 *
 * Needs `--allow-net` for the source's hosts, `--allow-write` for the file.
 *
 * @param source Where the blob is.
 * @param part The file.
 * @param options Connections, retries, time limits.
 * @throws {RangesUnavailable} When the source does not serve ranges; when it
 * cannot be reached at all, the reason is its cause.
 * @throws {ToolsmithError} `rate_limited`, `registry_unavailable`, `tls_failed`,
 * `dns_failed`, `connection_failed`, `transfer_interrupted`, `transfer_stalled`.
 */
export async function readBlob(
  source: BlobSource,
  part: PartFile,
  options: ReadBlobOptions,
): Promise<void> {
  const { connections, stallMs, onBytes } = options;
  const stop = new AbortController();
  const signal = options.signal
    ? AbortSignal.any([options.signal, stop.signal])
    : stop.signal;
  const shared = patience({ ...options, signal, bytes: () => part.bytes });
  const before = part.bytes;
  let workers: Promise<void>[] = [];
  try {
    for (let gaps; (gaps = part.gaps()).length > 0;) {
      const plan = rangePlan(gaps, connections);
      const context = { source, part, plan, stallMs, onBytes, signal };
      await shared.ready();
      let first: OpenPiece | undefined;
      try {
        first = await openPiece(context, plan.take(undefined)!);
        if (first?.answer.kind === "whole") {
          await readWhole(context, first);
          continue;
        }
      } catch (error) {
        if (part.bytes === before && isUnreachable(error)) {
          throw new RangesUnavailable(error.message, { cause: error });
        }
        shared.failed(error);
        continue;
      }
      workers = [first, ...Array(connections - 1).fill(undefined)]
        .map((open) => work(context, shared, open));
      await Promise.all(workers);
    }
  } finally {
    stop.abort();
    // Nothing is written any more when the file is closed.
    await Promise.allSettled(workers);
  }
}

/** Who was never reached is not waited for: another way may lead there. */
function isUnreachable(error: unknown): error is ToolsmithError {
  return error instanceof ToolsmithError &&
    /^(?:connection|dns|tls)_failed$/.test(error.code);
}

/** One connection: reads pieces until none is left. */
async function work(
  context: PieceContext,
  shared: Patience,
  first?: OpenPiece,
): Promise<void> {
  let rate: number | undefined;
  let next = first;
  while (next || !context.plan.done) {
    try {
      if (!next) {
        await shared.ready();
        context.signal.throwIfAborted();
        const piece = context.plan.take(rate);
        if (!piece) {
          await sleep(IDLE_MS, context.signal);
          continue;
        }
        next = await openPiece(context, piece);
        if (!next) continue;
        if (next.answer.kind === "whole") throw await wholeError(context, next);
      }
      rate = await readPiece(context, next);
    } catch (error) {
      shared.failed(error);
    }
    next = undefined;
  }
}

/** Among ranges the whole is of no use: the next answer may be one again. */
async function wholeError(
  { plan, part, source: { host } }: PieceContext,
  { piece, answer }: OpenPiece,
): Promise<ToolsmithError> {
  await answer.body.cancel();
  plan.end(piece, part.gaps([piece.at, piece.to]));
  return new ToolsmithError(
    "transfer_interrupted",
    `${host} sent the whole image where bytes from ${piece.at} on were asked for`,
    { hint: "try again" },
  );
}
