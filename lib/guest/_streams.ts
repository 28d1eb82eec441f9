/**
 * The streams of a command, as they go over ports of the guest.
 *
 * @module
 */
import { endMarker } from "./_end_marker.ts";
import { ToolsmithError } from "../errors.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import { writeAll } from "../system/streams.ts";

/** Takes output as it comes; the guest waits while a promise is pending. */
export type OutputSink = (chunk: Uint8Array) => void | Promise<void>;

/** What a command reads. */
export type CommandInput = string | Uint8Array | ReadableStream<Uint8Array>;

/** What has come through a port. */
export interface Received {
  /** Settles at the marker; rejects when the port ends before. */
  done: Promise<void>;
  /** The word after the marker, once it is there. */
  word(): string | undefined;
  /** Count of bytes before the marker. */
  bytes(): number;
  /** What was collected. */
  text(): string;
  /** Is some of the output not in {@linkcode text}, as it was too much? */
  truncated(): boolean;
}

const FRAME = 256 * 1024;
const LARGEST_FRAME = 16 * 1024 * 1024;
/** The guest holds one block in memory: what needs no new memory is quicker. */
const BLOCK = 64 * 1024;
/** This much comes sooner as one block than as some and a rest. */
const ONE_BLOCK = 1024 * 1024;
/** A guest must not fill the memory. */
const MAX_COLLECTED_BYTES = 32 * 1024 * 1024;

/**
 * Reads a port up to the marker.
 *
 * @param port The connection.
 * @param marker What ends the stream.
 * @param sink Takes the output; without it the output is collected.
 * @returns What was received, and a promise that settles at its end.
 */
export function receive(
  port: Deno.UnixConn,
  marker: string,
  sink?: OutputSink,
): Received {
  const end = endMarker(marker);
  const kept: Uint8Array[] = [];
  let room = sink ? 0 : MAX_COLLECTED_BYTES;
  let bytes = 0;
  const done = (async () => {
    const buffer = new Uint8Array(FRAME);
    while (end.word === undefined) {
      const count = await port.read(buffer).catch(() => null);
      if (count === null) throw new VmDisconnectedError();
      const chunk = end.push(buffer.slice(0, count));
      bytes += chunk.length;
      if (chunk.length === 0) continue;
      if (sink) await sink(chunk);
      if (room > 0) kept.push(chunk.subarray(0, room));
      room -= Math.min(room, chunk.length);
    }
  })();
  // It may fail while something else is waited for.
  done.catch(() => {});
  return {
    done,
    word: () => end.word,
    bytes: () => bytes,
    text: () => {
      const decoder = new TextDecoder();
      return kept.map((chunk) => decoder.decode(chunk, { stream: true }))
        .join("") + decoder.decode();
    },
    truncated: () => !sink && bytes > MAX_COLLECTED_BYTES,
  };
}

/**
 * Sends the input in frames, each a line with the size and the count of its blocks,
 * then the bytes. A frame costs the guest a process: it takes all that has come
 * while the one before was written.
 *
 * @param port The connection.
 * @param stdin The input.
 * @param signal Ends the sending when aborted; a stream is cancelled.
 * @throws {ToolsmithError} `file_unreadable` when the input breaks off.
 */
export async function feed(
  port: Deno.UnixConn,
  stdin: CommandInput,
  signal: AbortSignal,
): Promise<void> {
  if (!(stdin instanceof ReadableStream)) {
    const bytes = typeof stdin === "string"
      ? new TextEncoder().encode(stdin)
      : stdin;
    await sendFrames(port, [bytes], signal);
    return await sendLine(port, "0");
  }
  const reader = stdin.getReader();
  const cancel = () => reader.cancel().catch(() => {});
  signal.addEventListener("abort", cancel, { once: true });
  try {
    const ahead = readAhead(reader);
    while (true) {
      const chunks = await ahead.take().catch(unreadable);
      if (chunks.length === 0 || signal.aborted) break;
      await sendFrames(port, chunks, signal);
    }
    await sendLine(port, "0");
  } finally {
    signal.removeEventListener("abort", cancel);
    // Where the port broke off, a read may still be under way.
    cancel();
    reader.releaseLock();
  }
}

/** Sends chunks, as few frames as may be. */
async function sendFrames(
  port: Deno.UnixConn,
  chunks: Uint8Array[],
  signal: AbortSignal,
) {
  let left = chunks.reduce((sum, { length }) => sum + length, 0);
  let room = 0;
  for (const chunk of chunks) {
    for (let at = 0; at < chunk.length && !signal.aborted;) {
      if (room === 0) {
        const size = left <= ONE_BLOCK ? left : BLOCK;
        const count = Math.floor(Math.min(left, LARGEST_FRAME) / size);
        room = size * count;
        left -= room;
        await sendLine(port, `${size} ${count}`);
      }
      const piece = chunk.subarray(at, at + room);
      await writeAll(port, piece);
      at += piece.length;
      room -= piece.length;
    }
  }
}

/** Reads while what was read before is sent, but no more than a frame takes. */
function readAhead(reader: ReadableStreamDefaultReader<Uint8Array>) {
  let chunks: Uint8Array[] = [];
  let size = 0;
  let failure: unknown;
  let over = false;
  let arrived = Promise.withResolvers<void>();
  let taken = Promise.withResolvers<void>();
  (async () => {
    try {
      while (true) {
        const { value } = await reader.read();
        if (value === undefined) break;
        chunks.push(value);
        size += value.length;
        arrived.resolve();
        if (size >= LARGEST_FRAME) await taken.promise;
      }
    } catch (error) {
      failure = error;
    }
    over = true;
    arrived.resolve();
  })();
  return {
    /** All that has come, once something has; nothing at the end. */
    async take(): Promise<Uint8Array[]> {
      await arrived.promise;
      const all = chunks;
      if (all.length === 0 && failure !== undefined) throw failure;
      chunks = [];
      size = 0;
      if (!over) arrived = Promise.withResolvers();
      taken.resolve();
      taken = Promise.withResolvers();
      return all;
    },
  };
}

function unreadable(cause: unknown): never {
  const reason = cause instanceof Error ? cause.message : String(cause);
  const message = `The command's input cannot be read: ${reason}`;
  throw new ToolsmithError("file_unreadable", message, { cause });
}

/**
 * Sends a line of text.
 *
 * @param port The connection.
 * @param line The line, without its end.
 */
export async function sendLine(
  port: Deno.UnixConn,
  line: string,
): Promise<void> {
  await writeAll(port, new TextEncoder().encode(`${line}\n`));
}
