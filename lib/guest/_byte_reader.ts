/**
 * Reads chunks of any length as stretches of bytes.
 *
 * @module
 */

/** Bytes that come in chunks. */
export interface ByteReader {
  /** How many bytes were read, or passed over. */
  readonly position: number;
  /** Reads so many bytes; `undefined` where there are fewer. */
  exactly(count: number): Promise<Uint8Array | undefined>;
  /** Reads so many bytes, as they come; fewer where there are fewer. */
  take(count: number): AsyncGenerator<Uint8Array>;
  /** Passes over so many bytes; `false` where there are fewer. */
  skip(count: number): Promise<boolean>;
  /** Passes over all that is left. */
  drain(): Promise<void>;
  /** Ends the reading early: whoever sends is stopped. */
  close(): Promise<void>;
}

/**
 * Reads chunks.
 *
 * @param chunks The bytes.
 * @param onRead Called with the count of bytes that have come; it may throw.
 */
export function byteReader(
  chunks: AsyncIterable<Uint8Array>,
  onRead: (count: number) => void,
): ByteReader {
  const iterator = chunks[Symbol.asyncIterator]();
  let rest = new Uint8Array();
  let position = 0;
  let come = 0;
  async function* take(count: number) {
    while (count > 0) {
      if (rest.length === 0) {
        const { value, done } = await iterator.next();
        if (done) return;
        onRead(come += value.length);
        // Whoever sends it may use its memory again.
        rest = value.slice();
        continue;
      }
      const part = rest.subarray(0, count);
      rest = rest.subarray(part.length);
      position += part.length;
      count -= part.length;
      yield part;
    }
  }
  return {
    get position() {
      return position;
    },
    take,
    async exactly(count) {
      const bytes = new Uint8Array(count);
      let at = 0;
      for await (const part of take(count)) {
        bytes.set(part, at);
        at += part.length;
      }
      return at === count ? bytes : undefined;
    },
    async skip(count) {
      for await (const part of take(count)) count -= part.length;
      return count === 0;
    },
    async drain() {
      for await (const _ of take(Infinity));
    },
    async close() {
      await iterator.return?.();
    },
  };
}
