/**
 * Forwards the bytes of a connection between the guest and its peer.
 *
 * @module
 */
import { writeAll } from "../system/write_all.ts";
import type { TcpConnection } from "./_tcp.ts";
import { forwardJudged } from "./_traffic.ts";

/** Enough to see whether a server changes the protocol. */
const ANSWER_BYTES = "HTTP/1.1 101".length;

/**
 * Forwards both ways until both have ended.
 *
 * @param judged The host that the guest may speak to. @default {undefined} any
 */
export async function relay(
  connection: TcpConnection,
  peer: Deno.TcpConn,
  judged: { host: string; port: number } | undefined,
) {
  connection.onReset = () => closeQuietly(peer);
  const answer = Promise.withResolvers<string>();
  let start = "";
  const readPeer = async (into: Uint8Array) => {
    const count = await peer.read(into);
    if (start.length < ANSWER_BYTES) {
      const bytes = into.subarray(0, Math.min(count ?? 0, ANSWER_BYTES));
      start += String.fromCharCode(...bytes);
    }
    if (count === null || start.length >= ANSWER_BYTES) {
      answer.resolve(start.slice(0, ANSWER_BYTES));
    }
    return count;
  };
  const toGuest = async () => {
    while (await connection.sendFrom(readPeer));
  };
  const down = toGuest();
  const read = () => connection.read();
  // A server may answer and hang up before it has read everything.
  const write = (bytes: Uint8Array) => writeAll(peer, bytes).catch(() => down);
  const toHost = async () => {
    if (judged) {
      const stream = { ...judged, read, write, answer: answer.promise };
      await forwardJudged(stream);
    } else {
      for (let bytes; (bytes = await read());) await write(bytes);
    }
    await peer.closeWrite();
  };
  const up = toHost();
  try {
    await Promise.all([up, down]);
  } catch (error) {
    connection.reset();
    answer.resolve("");
    await Promise.allSettled([up, down]);
    throw error;
  }
}

/** Closes what may be closed already. */
export function closeQuietly(it: { close(): void } | undefined) {
  try {
    it?.close();
  } catch {
    // It is closed.
  }
}
