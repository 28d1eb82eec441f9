/** Forwards the bytes of a connection between the guest and its peer. */
import { abortable } from "../system/time.ts";
import { writeAll } from "../system/write_all.ts";
import type { TcpConnection } from "./_tcp.ts";
import { forwardJudged } from "./_traffic.ts";

/** Enough to see whether a server changes the protocol. */
const ANSWER_BYTES = "HTTP/1.1 101".length;

/**
 * Forwards both ways until both have ended.
 *
 * @param options `judged`: the only host that the guest may speak to.
 */
export async function relay(
  connection: TcpConnection,
  peer: Deno.TcpConn,
  options: { judged?: { host: string; port: number }; signal: AbortSignal },
) {
  const { judged, signal } = options;
  connection.onReset = () => peer[Symbol.dispose]();
  const answer = Promise.withResolvers<string>();
  let start = "";
  const readPeer = async (into: Uint8Array) => {
    const count = await peer.read(into);
    const missing = ANSWER_BYTES - start.length;
    const more = into.subarray(0, Math.min(count ?? 0, missing));
    start += String.fromCharCode(...more);
    if (count === null || start.length === ANSWER_BYTES) answer.resolve(start);
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
      await forwardJudged({ ...judged, read, write, answer: answer.promise });
    } else {
      for (let bytes; (bytes = await read());) await write(bytes);
    }
    await peer.closeWrite();
  };
  const up = toHost();
  try {
    await abortable(Promise.all([up, down]), signal);
  } catch (error) {
    connection.reset();
    answer.resolve("");
    await Promise.allSettled([up, down]);
    throw error;
  }
}
