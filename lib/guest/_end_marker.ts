/**
 * Finds the end of a stream that has no end of its own: a marker that nobody
 * could guess, and a word after it.
 *
 * @module
 */

const LONGEST_WORD = 16;

/** Takes apart what comes through a port of the guest. */
export interface EndMarker {
  /** The word after the marker, once it is there. */
  readonly word: string | undefined;
  /** Takes the next bytes and returns those that belong to the stream. */
  push(chunk: Uint8Array): Uint8Array;
}

/**
 * Watches a stream for its end. Every byte before the marker is handed on as
 * soon as it cannot be part of the marker; none after it.
 *
 * @param marker What ends the stream; the word up to a newline follows.
 * @returns The watcher.
 *
 * @example
 * ```ts
 * import { endMarker } from "./_end_marker.ts";
 *
 * const end = endMarker("d41d8c");
 * const bytes = end.push(new TextEncoder().encode("hid41d8c3\n"));
 * if (new TextDecoder().decode(bytes) !== "hi" || end.word !== "3") throw "";
 * ```
 */
export function endMarker(marker: string): EndMarker {
  const sought = new TextEncoder().encode(marker);
  let held: Uint8Array = new Uint8Array();
  let tail: string | undefined;
  let word: string | undefined;
  const take = (bytes: Uint8Array) => {
    tail += new TextDecoder().decode(bytes);
    const [first, ...more] = tail!.split("\n");
    // A guest that never ends its word must not fill the memory.
    if (more.length > 0 || first.length > LONGEST_WORD) word = first;
  };
  return {
    get word() {
      return word;
    },
    push(chunk) {
      if (tail !== undefined) {
        if (word === undefined) take(chunk);
        return new Uint8Array();
      }
      const bytes = held.length === 0 ? chunk : join(held, chunk);
      const at = find(bytes, sought);
      if (at + sought.length <= bytes.length) {
        tail = "";
        take(bytes.subarray(at + sought.length));
        return bytes.slice(0, at);
      }
      // What may be the marker's beginning is kept, the rest is not delayed.
      held = bytes.slice(at);
      return bytes.slice(0, at);
    },
  };
}

/** Where the sequence is, or where it may begin at the end of the bytes. */
function find(bytes: Uint8Array, sought: Uint8Array): number {
  let at = bytes.indexOf(sought[0]);
  while (at >= 0) {
    const length = Math.min(sought.length, bytes.length - at);
    let same = 1;
    while (same < length && bytes[at + same] === sought[same]) same++;
    if (same === length) return at;
    at = bytes.indexOf(sought[0], at + 1);
  }
  return bytes.length;
}

function join(a: Uint8Array, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}
