/** Shortens what a command prints, and keeps it within bounds for `read_output`. */

/** Shown of the start and of the end of a longer stream. */
const SHOWN_BYTES = 32 * 1024;
/** A character that begins within what is shown may end after it. */
const START_BYTES = SHOWN_BYTES + 3;
const END_BYTES = 4 * 1024 * 1024;
const MAX_READ_BYTES = 64 * 1024;
const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export type KeptStream = ReturnType<typeof keepStream>;

/** @param name The arguments with which `read_output` reads the stream. */
export function keepStream(name: object) {
  const kept = new Uint8Array(START_BYTES + END_BYTES);
  let total = 0;
  /** The end is kept in a ring. */
  const indexOf = (at: number) =>
    at < START_BYTES ? at : START_BYTES + at % END_BYTES;
  const byteAt = (at: number) => kept[indexOf(at)];
  const nextCharacter = (offset: number) =>
    [offset, offset + 1, offset + 2, offset + 3]
      .find((at) => at >= total || (byteAt(at) & 0xC0) !== 0x80) ?? offset;
  /** Reads from an offset in bytes, or from the next byte that is kept. */
  const read = (asked: number, maxBytes = MAX_READ_BYTES) => {
    const endStart = Math.max(SHOWN_BYTES, total - END_BYTES);
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
      for (const byte of chunk) kept[indexOf(total++)] = byte;
    },
    /** The text to show, and whether `read` returns more. */
    shown() {
      const isCut = total > 2 * SHOWN_BYTES;
      const first = read(0, isCut ? SHOWN_BYTES : total);
      const last = read(nextCharacter(isCut ? total - SHOWN_BYTES : total));
      const isText = [first, last].every((it) => it.encoding === "utf-8");
      if (isText && !isCut) return { text: first.data, truncated: false };
      const offset = isText ? first.nextOffset! : 0;
      const what = isText
        ? `${last.offset - offset} bytes left out`
        : `${total} bytes, not UTF-8`;
      const how = JSON.stringify({ ...name, offset });
      const note = `[${what}: read_output ${how}]`;
      const text = isText ? `${first.data}\n${note}\n${last.data}` : note;
      return { text, truncated: true };
    },
  };
}
