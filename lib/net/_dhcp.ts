/**
 * Answers DHCP (RFC 2131, RFC 2132) of a guest that configures its cards by itself, with
 * the address that it has anyway.
 *
 * @module
 */
import {
  addressBytes,
  GATEWAY,
  GUEST,
  MTU,
  NETMASK,
  numbersOf,
} from "./_packet.ts";

const MAGIC = 0x63825363;
const DISCOVER = 1, OFFER = 2, REQUEST = 3, ACKNOWLEDGMENT = 5;
/** Longer than guests live. */
const LEASE_S = 30 * 86_400;

/** The answer to a client's message; `undefined` if it needs none. */
export function dhcpReply(message: Uint8Array): Uint8Array | undefined {
  if (message.length < 240 || message[0] !== 1) return undefined;
  if (numbersOf(message).getUint32(236) !== MAGIC) return undefined;
  let type = 0;
  for (let at = 240; at < message.length && message[at] !== 255;) {
    const [option, length = 0, value] = message.subarray(at);
    if (option === 53) type = value;
    at += option === 0 ? 1 : 2 + length;
  }
  if (type !== DISCOVER && type !== REQUEST) return undefined;
  const gateway = addressBytes(GATEWAY);
  const options = [
    ...[53, 1, type === DISCOVER ? OFFER : ACKNOWLEDGMENT],
    ...[54, 4, ...gateway, 51, 4, ...addressBytes(LEASE_S)],
    ...[1, 4, ...addressBytes(NETMASK), 3, 4, ...gateway, 6, 4, ...gateway],
    ...[26, 2, MTU >> 8, MTU & 255, 255],
  ];
  const reply = new Uint8Array(300);
  // Transaction, flags and hardware address are the client's.
  reply.set(message.subarray(0, 44));
  reply.set([2, 1, 6, 0]);
  reply.set([0, 0, 0, 0, ...addressBytes(GUEST), ...gateway], 12);
  numbersOf(reply).setUint32(236, MAGIC);
  reply.set(options, 240);
  return reply;
}
