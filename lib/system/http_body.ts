/** Reads HTTP response bodies with a stall timeout and a size limit. */
import { toTransportError } from "./http_errors.ts";
import type { Deadline } from "./time.ts";

const CHUNK_BYTES = 1024 * 1024;

/**
 * Reads a body until its end or until the timer's signal aborts. The signal of `fetch`
 * does not stop a body: Deno (2.9) drops it when the request is garbage collected. The
 * timer pauses while the consumer works on a chunk. Each chunk overwrites the previous
 * one. `shown` names the source in errors.
 */
export async function* readBodyChunks(
  body: ReadableStream<Uint8Array<ArrayBuffer>>,
  timer: Deadline,
  shown: string,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const { signal } = timer;
  const reader = body.getReader({ mode: "byob" });
  // Cancelling makes a pending read return as if the body had ended.
  const cancel = () => void reader.cancel(signal.reason).catch(() => {});
  signal.addEventListener("abort", cancel, { once: true });
  let buffer = new ArrayBuffer(CHUNK_BYTES);
  try {
    while (true) {
      signal.throwIfAborted();
      timer.restart();
      const { done, value } = await reader.read(new Uint8Array(buffer))
        .catch((error) => {
          signal.throwIfAborted();
          throw toTransportError(error, shown, true);
        });
      timer.pause();
      signal.throwIfAborted();
      if (done || !value) return;
      yield value;
      buffer = value.buffer;
    }
  } finally {
    timer.pause();
    signal.removeEventListener("abort", cancel);
    await reader.cancel().catch(() => {});
  }
}

/**
 * Reads a short body into memory; `undefined` if it exceeds `limit` bytes. The stall
 * timeout limits the whole read, because a server that sends single bytes would
 * otherwise hold the connection forever.
 */
export async function readLimitedBody(
  body: ReadableStream<Uint8Array<ArrayBuffer>> | null,
  timer: Deadline,
  { shown, limit }: { shown: string; limit: number },
): Promise<Uint8Array<ArrayBuffer> | undefined> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  const wholeReadTimer = { ...timer, restart() {}, pause() {} };
  let size = 0;
  for await (
    const chunk of body ? readBodyChunks(body, wholeReadTimer, shown) : []
  ) {
    size += chunk.length;
    if (size > limit) return undefined;
    parts.push(chunk.slice());
  }
  return await new Blob(parts).bytes() as Uint8Array<ArrayBuffer>;
}
