/**
 * The interface of what a download reads from: a registry, a mirror or an HTTPS
 * server.
 */

/** Serves the bytes of one file. */
export interface ByteSource {
  /** Host or URL for messages, without secrets. */
  readonly displayName: string;
  /**
   * Requests a range of bytes; `to` is exclusive. The response starts at `from` and may
   * be longer, or holds the whole file.
   */
  requestRange(
    from: number,
    to: number,
    signal: AbortSignal,
  ): Promise<RangeResponse>;
  /** Highest number of bytes to read. */
  readonly maxBytes: number;
  /**
   * Creates the error for a source that sends bytes beyond the end of the announced
   * bytes, or beyond {@linkcode ByteSource.maxBytes}.
   */
  tooManyBytesError(limit: number): Error;
}

/** A response whose headers have arrived. */
export interface RangeResponse {
  /** Offset of the first byte. */
  start: number;
  /** Announced end offset; `Infinity` if unknown. */
  end: number;
  body: ReadableStream<Uint8Array<ArrayBuffer>>;
}

/**
 * Range requests are not possible here; the caller may fall back to `oras pull`. The
 * message is the reason, without secrets, to be printed after a colon.
 */
export class RangesUnavailableError extends Error {
  override readonly name = "RangesUnavailableError";
}
