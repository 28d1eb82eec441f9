/**
 * Finds chunks by length and hash. A table of numbers, as a `Map` of strings would take
 * ten times the memory: an image of 20 GB has more than a million chunks.
 */
import { RECORD_BYTES } from "./chunker.ts";

/**
 * Creates the table of the chunks of an index.
 *
 * @returns The number of the first chunk that is equal to the one of a record, by the
 * record's view and offset; -1 if there is none.
 */
export function createChunkTable(records: Uint8Array) {
  const own = viewOf(records);
  const bits = Math.ceil(Math.log2(records.length / RECORD_BYTES + 1)) + 1;
  /** The number of a chunk, plus one. */
  const slots = new Uint32Array(2 ** bits);
  // Random and odd: nobody can make an index whose chunks share one place.
  const factors = crypto.getRandomValues(new Uint32Array(3))
    .map((factor) => factor | 1);
  const mix = (state: number, nth: number) => {
    const product = Math.imul(state, factors[nth]);
    return product ^ product >>> 15;
  };
  const findSlot = (view: DataView, at: number) => {
    const [upper, lower] = [view.getUint32(at + 2), view.getUint32(at + 6)];
    const length = view.getUint16(at);
    let slot = mix(mix(mix(upper, 0) ^ length, 1) ^ lower, 2) >>> 32 - bits;
    for (; slots[slot] > 0; slot = (slot + 1) % slots.length) {
      const other = (slots[slot] - 1) * RECORD_BYTES;
      const isEqual = own.getUint16(other) === length &&
        own.getUint32(other + 2) === upper &&
        own.getUint32(other + 6) === lower;
      if (isEqual) break;
    }
    return slot;
  };
  for (let at = 0; at < records.length; at += RECORD_BYTES) {
    slots[findSlot(own, at)] ||= at / RECORD_BYTES + 1;
  }
  return (view: DataView, at: number) => slots[findSlot(view, at)] - 1;
}

/** A view of a file's records. */
export function viewOf({ buffer, byteOffset, byteLength }: Uint8Array) {
  return new DataView(buffer, byteOffset, byteLength);
}
