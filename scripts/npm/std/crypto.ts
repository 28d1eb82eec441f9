/**
 * Stands in for `@std/crypto` where only npm can be reached: the npm build of
 * the standard library lacks the Wasm that this module needs. hash-wasm is as
 * fast as that Wasm, and as independent of the runtime's own implementation.
 * `deno task bench` compares them.
 */
import { createSHA256 } from "hash-wasm";
import type { StdCrypto } from "../signatures.ts";

/** The part of `@std/crypto` that Toolsmith uses. */
export const crypto: StdCrypto["crypto"] = {
  subtle: {
    /** Digests a stream, one chunk at a time; a single buffer by Web Crypto. */
    async digest(algorithm, data) {
      if (!(Symbol.asyncIterator in data)) {
        return await globalThis.crypto.subtle.digest(algorithm, data);
      }
      const hash = await createSHA256();
      for await (const chunk of data) hash.update(bytesOf(chunk));
      return new Uint8Array(hash.digest("binary")).buffer;
    },
  },
};

function bytesOf(source: BufferSource): Uint8Array {
  return source instanceof ArrayBuffer
    ? new Uint8Array(source)
    : new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
}
