/** A transfer target in memory. */
import type { TransferTarget } from "../../lib/transfer/ranged_transfer.ts";

/** Collects the bytes of a transfer, which must arrive in order. */
export interface MemoryTarget extends TransferTarget {
  /** The bytes so far. */
  bytes(): Uint8Array;
}

/**
 * Makes a target.
 *
 * @param size The expected size; `Infinity` if unknown.
 */
export function memoryTarget(size = Infinity): MemoryTarget {
  const bytes: number[] = [];
  return {
    size,
    bytes: () => new Uint8Array(bytes),
    missingExtents: ([from, to] = [0, size]) =>
      bytes.length >= to ? [] : [[Math.max(from, bytes.length), to]],
    openWriter: () =>
      Promise.resolve({
        async write(_position: number, chunk: Uint8Array) {
          const copy = [...chunk];
          await Promise.resolve();
          bytes.push(...copy);
        },
        [Symbol.dispose]() {},
      }),
  };
}
