/**
 * Writing all of the bytes, as a write may take only some of them, and reading
 * up to a limit or an abort.
 *
 * @module
 */

const BODY_CHUNK = 1024 * 1024;

/**
 * Writes all of the bytes.
 *
 * @param writer A file, a socket, a terminal.
 * @param bytes What to write.
 */
export async function writeAll(
  writer: { write(bytes: Uint8Array): Promise<number> },
  bytes: Uint8Array,
): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    at += await writer.write(bytes.subarray(at));
  }
}

/**
 * Writes all of the bytes, and waits for it without letting others work.
 *
 * @param writer A file or a terminal.
 * @param bytes What to write.
 */
export function writeAllSync(
  writer: { writeSync(bytes: Uint8Array): number },
  bytes: Uint8Array,
): void {
  for (let at = 0; at < bytes.length;) {
    at += writer.writeSync(bytes.subarray(at));
  }
}

/**
 * Reads a response's body until a signal is aborted. The signal of `fetch` does
 * not do that: Deno (2.9) forgets it when the request is garbage.
 *
 * @param body The body.
 * @param signal Ends the reading; the generator throws its reason.
 * @returns The chunks; each is overwritten by the next.
 */
export async function* abortableChunks(
  body: ReadableStream<Uint8Array<ArrayBuffer>>,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const reader = body.getReader({ mode: "byob" });
  // A pending read then ends as if the body did.
  const cancel = () => void reader.cancel(signal.reason).catch(() => {});
  signal.addEventListener("abort", cancel, { once: true });
  let buffer = new ArrayBuffer(BODY_CHUNK);
  try {
    while (true) {
      signal.throwIfAborted();
      const { done, value } = await reader.read(new Uint8Array(buffer));
      signal.throwIfAborted();
      if (done || !value) return;
      yield value;
      buffer = value.buffer;
    }
  } finally {
    signal.removeEventListener("abort", cancel);
    await reader.cancel().catch(() => {});
  }
}

/**
 * Reads chunks into memory.
 *
 * @param chunks The chunks; each may be overwritten by the next.
 * @param limit The most that is read, in bytes.
 * @returns The bytes, or `undefined` where there are more.
 */
export async function readAtMost(
  chunks: AsyncIterable<Uint8Array<ArrayBuffer>>,
  limit: number,
): Promise<Uint8Array<ArrayBuffer> | undefined> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  let size = 0;
  for await (const chunk of chunks) {
    size += chunk.length;
    if (size > limit) return undefined;
    parts.push(chunk.slice());
  }
  return await new Blob(parts).bytes() as Uint8Array<ArrayBuffer>;
}
