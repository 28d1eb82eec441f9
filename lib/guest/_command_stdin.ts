/** Sends a command's standard input through a virtio-serial port, in frames. */
import { ToolsmithError } from "../errors.ts";
import { writeAll } from "../system/write_all.ts";

/** A command's standard input. */
export type CommandInput = string | Uint8Array | ReadableStream<Uint8Array>;

const MAX_FRAME_BYTES = 16 * 1024 * 1024;
/** The guest's `dd` holds one block in memory. */
const DD_BLOCK_BYTES = 64 * 1024;
/** Up to this size one block is faster than several. */
const MAX_DD_BLOCK_BYTES = 1024 * 1024;

/**
 * Sends the input in frames: a line with block size and block count, then the bytes.
 * Each frame costs the guest a process, so a frame takes all bytes that arrived while
 * the previous one was written. The signal stops sending and cancels a stream.
 */
export async function sendStdin(
  port: Deno.UnixConn,
  stdin: CommandInput,
  signal: AbortSignal,
): Promise<void> {
  if (!(stdin instanceof ReadableStream)) {
    const isText = typeof stdin === "string";
    const bytes = isText ? new TextEncoder().encode(stdin) : stdin;
    await sendFrames(port, bytes, signal);
    return await sendLine(port, "0");
  }
  const source = stdin.getReader();
  const arrived = readAhead(source);
  const cancel = () => void arrived.cancel().catch(() => {});
  signal.addEventListener("abort", cancel, { once: true });
  try {
    let buffer = new Uint8Array(MAX_FRAME_BYTES);
    while (!signal.aborted) {
      const { value, done } = await arrived.read(buffer);
      if (done) break;
      await sendFrames(port, value, signal);
      buffer = new Uint8Array(value.buffer);
    }
    await source.closed.catch((cause) => {
      const reason = cause instanceof Error ? cause.message : String(cause);
      const message = `Cannot read the command's standard input: ${reason}`;
      throw new ToolsmithError("file_unreadable", message, { cause });
    });
    await sendLine(port, "0");
  } finally {
    signal.removeEventListener("abort", cancel);
    // A read may still be pending if the port closed.
    cancel();
    source.releaseLock();
  }
}

async function sendFrames(
  port: Deno.UnixConn,
  bytes: Uint8Array,
  signal: AbortSignal,
) {
  for (let at = 0; at < bytes.length && !signal.aborted;) {
    const left = bytes.length - at;
    const size = left <= MAX_DD_BLOCK_BYTES ? left : DD_BLOCK_BYTES;
    const count = Math.floor(Math.min(left, MAX_FRAME_BYTES) / size);
    await sendLine(port, `${size} ${count}`);
    await writeAll(port, bytes.subarray(at, at += size * count));
  }
}

/**
 * Reads up to the size of one frame, while earlier bytes are sent. Each read into a
 * buffer returns all bytes that have arrived. A failure only ends the stream, so that
 * these are read.
 */
function readAhead(source: ReadableStreamDefaultReader<Uint8Array>) {
  return new ReadableStream({
    type: "bytes",
    async pull(controller) {
      let chunk: Uint8Array | undefined;
      do {
        const read = await source.read().catch(() => undefined);
        chunk = read?.value;
      } while (chunk?.length === 0);
      // A copy, as the stream takes the memory from its owner.
      if (chunk) return controller.enqueue(chunk.slice());
      controller.close();
      controller.byobRequest?.respond(0);
    },
    cancel: () => source.cancel(),
  }, { highWaterMark: MAX_FRAME_BYTES }).getReader({ mode: "byob" });
}

export async function sendLine(port: Deno.UnixConn, line: string) {
  await writeAll(port, new TextEncoder().encode(`${line}\n`));
}
