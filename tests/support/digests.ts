/** Counts bytes hashed by `@std/crypto`, and writes random files. */
import { crypto } from "@std/crypto/crypto";
import { replaceMethod } from "./replace_method.ts";

/**
 * Counts the bytes that `@std/crypto` hashes as a stream, until disposed.
 */
export function countStdDigestBytes(): { readonly bytes: number } & Disposable {
  const { digest } = crypto.subtle;
  let bytes = 0;
  const replaced = replaceMethod(crypto.subtle, {
    digest(...[name, data]: Parameters<typeof digest>) {
      if (!(Symbol.asyncIterator in data)) return digest(name, data);
      return digest(
        name,
        (async function* () {
          for await (const chunk of data) {
            bytes += chunk.byteLength;
            yield chunk;
          }
        })(),
      );
    },
  });
  return {
    get bytes() {
      return bytes;
    },
    [Symbol.dispose]: () => replaced[Symbol.dispose](),
  };
}

/**
 * Writes a file of random bytes.
 *
 * @param path The file; an existing one is replaced.
 * @param size Its size, in bytes.
 */
export async function writeRandom(path: string, size: number): Promise<void> {
  using file = await Deno.open(path, {
    write: true,
    create: true,
    truncate: true,
  });
  // The maximum per call.
  const chunk = new Uint8Array(65536);
  for (let written = 0; written < size;) {
    const part = chunk.subarray(0, Math.min(chunk.length, size - written));
    globalThis.crypto.getRandomValues(part);
    written += await file.write(part);
  }
}
