/**
 * Stands in for `@std/crypto` where only npm can be reached: the npm build of
 * the standard library lacks the Wasm that this module needs.
 *
 * @module
 */
import { createHash } from "node:crypto";

/** The part of `@std/crypto` that Toolsmith uses. */
export const crypto = {
  subtle: {
    /** Digests a stream of chunks, holding one chunk at a time. */
    async digest(
      algorithm: "SHA-256",
      data: AsyncIterable<Uint8Array<ArrayBuffer>>,
    ): Promise<ArrayBuffer> {
      const hash = createHash(algorithm.replace("-", "").toLowerCase());
      for await (const chunk of data) hash.update(chunk);
      return new Uint8Array(hash.digest()).buffer;
    },
  },
};
