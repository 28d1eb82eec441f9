/**
 * Shortens what a command prints, and keeps it within bounds for `read_output`.
 */

/** Shown of the start and of the end of a longer stream. */
const SHOWN_BYTES = 32 * 1024;
/** Kept of the end of a stream, besides the start that is shown. */
const KEPT_END_BYTES = 4 * 1024 * 1024;
const MAX_READ_BYTES = 64 * 1024;
const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** One stream of a command's output. */
export type KeptStream = ReturnType<typeof keepStream>;

/** @param name The arguments with which `read_output` reads the stream. */
export function keepStream(name: object) {
  // A character that begins within the start may end after it.
  const start = new Uint8Array(SHOWN_BYTES + 3);
  const end = new Uint8Array(KEPT_END_BYTES);
  let total = 0;
  const byteAt = (at: number) => start[at] ?? end[at % KEPT_END_BYTES];
  const nextCharacter = (offset: number) =>
    [offset, offset + 1, offset + 2, offset + 3]
      .find((at) => at >= total || (byteAt(at) & 0xC0) !== 0x80) ?? offset;
  /** Reads from an offset in bytes, or from the next byte that is kept. */
  const read = (asked: number, maxBytes = MAX_READ_BYTES) => {
    const endStart = Math.max(SHOWN_BYTES, total - KEPT_END_BYTES);
    const isStart = asked < SHOWN_BYTES;
    const offset = isStart ? asked : Math.max(asked, nextCharacter(endStart));
    const limit = isStart && endStart > SHOWN_BYTES ? SHOWN_BYTES : total;
    const next = nextCharacter(Math.min(offset + maxBytes, limit));
    const length = next - offset;
    const bytes = Uint8Array.from({ length }, (_, at) => byteAt(offset + at));
    const nextOffset = next < total ? next : null;
    const position = { offset, nextOffset, totalBytes: total };
    try {
      return { encoding: "utf-8", data: UTF8.decode(bytes), ...position };
    } catch {
      return { encoding: "base64", data: bytes.toBase64(), ...position };
    }
  };
  return {
    read,
    push(chunk: Uint8Array) {
      for (const byte of chunk) {
        // Ignored beyond the end of an array.
        start[total] = byte;
        end[total++ % KEPT_END_BYTES] = byte;
      }
    },
    /** The text to show, and whether `read` returns more. */
    shown() {
      const cut = total > 2 * SHOWN_BYTES;
      const first = read(0, cut ? SHOWN_BYTES : total);
      const last = read(nextCharacter(cut ? total - SHOWN_BYTES : total));
      const isText = first.encoding === "utf-8" && last.encoding === "utf-8";
      const offset = isText && first.nextOffset || 0;
      const how = `read_output ${JSON.stringify({ ...name, offset })}`;
      const left = last.offset - offset;
      const text = !isText
        ? `[${total} bytes, not UTF-8: ${how}]`
        : cut
        ? `${first.data}\n[${left} bytes left out: ${how}]\n${last.data}`
        : first.data;
      return { text, truncated: cut || !isText };
    },
  };
}
