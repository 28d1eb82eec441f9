/**
 * Shortens what a command prints, and keeps it within bounds for `read_output`.
 *
 * @module
 */

/** Shown of the start and of the end of a longer stream. */
const SHOWN_BYTES = 32 * 1024;
/** Kept of the end of a stream, besides the start that is shown. */
const KEPT_END_BYTES = 4 * 1024 * 1024;
const MAX_READ_BYTES = 64 * 1024;

/** One stream of a command's output. */
export type KeptStream = ReturnType<typeof keepStream>;

/** @param name The arguments with which `read_output` reads the stream. */
export function keepStream(name: object) {
  const kept = new Uint8Array(SHOWN_BYTES + KEPT_END_BYTES);
  let total = 0;
  // Beyond the start, new bytes replace the oldest.
  const indexOf = (offset: number) =>
    offset < SHOWN_BYTES
      ? offset
      : SHOWN_BYTES + (offset - SHOWN_BYTES) % KEPT_END_BYTES;
  const slice = (from: number, to: number) =>
    Uint8Array.from({ length: to - from }, (_, at) => kept[indexOf(from + at)]);
  return {
    push(chunk: Uint8Array) {
      for (const byte of chunk) kept[indexOf(total++)] = byte;
    },
    /** The text to show, and whether `read` returns more. */
    shown(): { text: string; truncated: boolean } {
      const cut = total > 2 * SHOWN_BYTES;
      const first = decode(slice(0, cut ? SHOWN_BYTES : total), cut);
      let from = cut ? total - SHOWN_BYTES : total;
      // Start with a whole character.
      while (from < total && (kept[indexOf(from)] & 0xC0) === 0x80) from++;
      const last = decode(slice(from, total));
      const offset = first && last ? first.length : 0;
      const how = `read_output ${JSON.stringify({ ...name, offset })}`;
      if (!first || !last) {
        return { text: `[${total} bytes, not UTF-8: ${how}]`, truncated: true };
      }
      if (!cut) return { text: first.text, truncated: false };
      const note = `[${from - offset} bytes left out: ${how}]`;
      return { text: `${first.text}\n${note}\n${last.text}`, truncated: true };
    },
    /** Reads from an offset in bytes, or from the next byte that is kept. */
    read(asked: number) {
      const endStart = Math.max(SHOWN_BYTES, total - KEPT_END_BYTES);
      const offset = asked < SHOWN_BYTES ? asked : Math.max(asked, endStart);
      const gap = asked < SHOWN_BYTES && endStart > SHOWN_BYTES;
      const limit = gap ? SHOWN_BYTES : Math.max(offset, total);
      const bytes = slice(offset, Math.min(offset + MAX_READ_BYTES, limit));
      const text = decode(bytes, offset + bytes.length < total);
      const isText = text && (text.length > 0 || bytes.length === 0);
      const next = offset + (isText ? text : bytes).length;
      return {
        encoding: isText ? "utf-8" : "base64",
        data: isText ? text.text : bytes.toBase64(),
        offset,
        nextOffset: next < total ? next : null,
        totalBytes: total,
      };
    },
  };
}

/** Decodes UTF-8; `cut` leaves out an incomplete character at the end. */
function decode(bytes: Uint8Array<ArrayBuffer>, cut = false) {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  try {
    const text = decoder.decode(bytes, { stream: cut });
    return { text, length: new TextEncoder().encode(text).length };
  } catch {
    return undefined;
  }
}
