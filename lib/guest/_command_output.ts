/**
 * Reads a command's output from a virtio-serial port. Such a port reports no end of
 * file: an unguessable end marker and a trailer (such as the exit status) end the
 * stream.
 */
import { VmDisconnectedError } from "../qemu/errors.ts";

/** Receives output chunks; the guest waits while the promise is pending. */
export type OutputSink = (chunk: Uint8Array) => void | Promise<void>;

const READ_BUFFER_BYTES = 256 * 1024;
/** A guest must not exhaust the host's memory. */
const MAX_COLLECTED_BYTES = 32 * 1024 * 1024;
const MAX_TRAILER_CHARS = 16;

/**
 * Reads a port up to the end marker and its trailer, which ends at a newline. Passes on
 * each byte before the marker as soon as it cannot be part of the marker; without a
 * sink the output is collected as text, up to 32 MiB. Throws
 * {@linkcode VmDisconnectedError} when the port closes before.
 */
export async function readUntilMarker(
  port: Deno.UnixConn,
  marker: string,
  sink?: OutputSink,
) {
  const sought = new TextEncoder().encode(marker);
  const buffer = new Uint8Array(READ_BUFFER_BYTES);
  const decoder = new TextDecoder();
  const texts: string[] = [];
  let room = sink ? 0 : MAX_COLLECTED_BYTES;
  let byteCount = 0;
  /** The start of the marker, or all that follows the output. */
  let held = new Uint8Array();
  while (true) {
    const count = await port.read(buffer).catch(() => null);
    if (count === null) throw new VmDisconnectedError();
    const bytes = new Uint8Array(held.length + count);
    bytes.set(held);
    bytes.set(buffer.subarray(0, count), held.length);
    const at = indexOfSequenceStart(bytes, sought);
    const chunk = bytes.subarray(0, at);
    held = bytes.subarray(at);
    byteCount += at;
    if (at > 0) await sink?.(chunk);
    texts.push(decoder.decode(chunk.subarray(0, room), { stream: true }));
    room -= Math.min(room, at);
    if (held.length < sought.length) continue;
    const [trailer, ...more] = new TextDecoder()
      .decode(held.subarray(sought.length)).split("\n");
    // A guest that never ends its trailer must not exhaust the memory.
    if (more.length === 0 && trailer.length <= MAX_TRAILER_CHARS) continue;
    const text = texts.join("") + decoder.decode();
    const truncated = !sink && byteCount > MAX_COLLECTED_BYTES;
    return { trailer, byteCount, text, truncated };
  }
}

/** The index of the sequence, or of its prefix at the end of the bytes. */
function indexOfSequenceStart(bytes: Uint8Array, sought: Uint8Array): number {
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
