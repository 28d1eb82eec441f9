/**
 * Stands in for `@std/crypto` where only npm can be reached: the npm build of
 * the standard library lacks the Wasm that this module needs.
 *
 * @module
 */
import type { StdCrypto } from "../signatures.ts";

/** The part of `@std/crypto` that Toolsmith uses. */
export const crypto: StdCrypto["crypto"] = {
  subtle: {
    /** Digests a stream of chunks, holding one chunk at a time. */
    async digest(algorithm, data) {
      const { createHash } = await import("node:crypto");
      const hash = createHash(algorithm.replace("-", "").toLowerCase());
      const chunks = Symbol.asyncIterator in data ? data : [data];
      for await (const chunk of chunks) hash.update(bytesOf(chunk));
      return new Uint8Array(hash.digest()).buffer;
    },
  },
};

function bytesOf(source: BufferSource): Uint8Array {
  return source instanceof ArrayBuffer
    ? new Uint8Array(source)
    : new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
}
