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
 * Sends the input in frames, each a line with its length, then the bytes.
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
  const stream = typeof stdin === "string"
    ? new Blob([stdin]).stream()
    : stdin instanceof Uint8Array
    ? new Blob([stdin as Uint8Array<ArrayBuffer>]).stream()
    : stdin;
  const reader = stream.getReader();
  const cancel = () => reader.cancel().catch(() => {});
  signal.addEventListener("abort", cancel, { once: true });
  try {
    while (!signal.aborted) {
      const { value } = await reader.read().catch(unreadable);
      if (value === undefined) break;
      for (let at = 0; at < value.length; at += FRAME) {
        const frame = value.subarray(at, at + FRAME);
        await sendLine(port, `${frame.length}`);
        await writeAll(port, frame);
      }
    }
    await sendLine(port, "0");
  } finally {
    signal.removeEventListener("abort", cancel);
    reader.releaseLock();
  }
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
