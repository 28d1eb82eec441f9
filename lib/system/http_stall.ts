/**
 * Notices a server that sends nothing for too long.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { transportError } from "./http_errors.ts";
import { abortableChunks } from "./streams.ts";

/** A clock for one request. It runs at first; disposing it stops it. */
export interface StallWatch extends Disposable {
  /**
   * Aborted by a stall, with `transfer_stalled` as its reason, or by one of the
   * caller's signals, with theirs: what aborted is never a guess.
   */
  readonly signal: AbortSignal;
  /** Restarts the clock. */
  resume(): void;
  /** Stops the clock. */
  pause(): void;
  /**
   * Makes a typed error of what the request or its body threw.
   *
   * @param error What was thrown; other errors than those of a transfer stay.
   * @param begun Whether the answer had begun.
   */
  explain(error: unknown, begun: boolean): unknown;
}

/**
 * Starts a clock for a request.
 *
 * @param shown The address, as a person may see it.
 * @param stallMs Time without a byte after which it is aborted, in milliseconds.
 * @param signals What ends the request besides.
 */
export function watchStall(
  shown: string,
  stallMs: number,
  ...signals: (AbortSignal | undefined)[]
): StallWatch {
  const stalled = new AbortController();
  const expire = () =>
    stalled.abort(
      new ToolsmithError(
        "transfer_stalled",
        `Cannot download ${shown}: nothing arrived for ${stallMs / 1000} s`,
        { hint: "try again, or allow more time: --stall-timeout SECONDS" },
      ),
    );
  const given = signals.filter((signal) => signal !== undefined);
  const signal = AbortSignal.any([...given, stalled.signal]);
  let timer = setTimeout(expire, stallMs);
  const pause = () => clearTimeout(timer);
  return {
    signal,
    resume() {
      pause();
      timer = setTimeout(expire, stallMs);
    },
    pause,
    explain(error, begun) {
      // A full disk is no failure of the connection.
      if (!(error instanceof TypeError)) return error;
      return signal.aborted
        ? signal.reason
        : transportError(error, shown, begun);
    },
    [Symbol.dispose]: pause,
  };
}

/**
 * Reads a body. The clock runs only while a chunk is waited for: the time that
 * the reader takes is not the server's.
 *
 * @param body The body.
 * @param watch The request's clock.
 * @returns The chunks; each is overwritten by the next.
 * @throws The reason of the clock's signal, and what the body throws.
 */
export async function* watchedChunks(
  body: ReadableStream<Uint8Array<ArrayBuffer>>,
  watch: StallWatch,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  try {
    watch.resume();
    for await (const chunk of abortableChunks(body, watch.signal)) {
      watch.pause();
      yield chunk;
      watch.resume();
    }
  } finally {
    watch.pause();
  }
}
