/**
 * What the guest's gateway answers by itself: DHCP (RFC 2131, RFC 2132), for a guest that
 * configures its cards by itself, and DNS (RFC 1035, section 4).
 */
import {
  addressBytes,
  GATEWAY,
  GUEST,
  MTU,
  NETMASK,
  numbersOf,
} from "./_packet.ts";
import { normalizeName } from "./rules.ts";

const DHCP_MAGIC = 0x63825363;
const DISCOVER = 1, OFFER = 2, REQUEST = 3, ACKNOWLEDGMENT = 5;
/** Longer than guests live. */
const LEASE_S = 30 * 86_400;

/** A code of DNS, and the address if there is one. */
export type DnsResult = { code: number; address?: number };
export const SERVER_FAILURE: DnsResult = { code: 2 };
export const NAME_ERROR: DnsResult = { code: 3 };
const TYPE_A = 1;
const ANSWER_TTL_S = 60;

/** The address that the guest has anyway; `undefined` if a message needs no answer. */
export function dhcpReply(message: Uint8Array): Uint8Array | undefined {
  if (message.length < 240 || message[0] !== 1) return undefined;
  if (numbersOf(message).getUint32(236) !== DHCP_MAGIC) return undefined;
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
  // Transaction, flags, hardware address and magic are the client's.
  reply.set(message.subarray(0, 44));
  reply.set([2, 1, 6, 0]);
  reply.set([0, 0, 0, 0, ...addressBytes(GUEST), ...gateway], 12);
  reply.set(message.subarray(236, 240), 236);
  reply.set(options, 240);
  return reply;
}

/** Answers a query with one question; `undefined` for any other message. */
export async function dnsAnswer(
  message: Uint8Array,
  lookUp: (name: string, isForAddress: boolean) => Promise<DnsResult>,
): Promise<Uint8Array | undefined> {
  const [, , flags, , , questions] = message;
  if (message.length < 12 || flags >> 3 !== 0 || questions !== 1) return;
  const labels: string[] = [];
  let at = 12;
  while (message[at] > 0) {
    // Also refuses a reference to another name, as there is none.
    if (message[at] > 63) return undefined;
    const label = message.subarray(at + 1, at + 1 + message[at]);
    labels.push(String.fromCharCode(...label));
    at += 1 + message[at];
  }
  if (at + 5 > message.length || at > 12 + 255) return undefined;
  const type = numbersOf(message).getUint16(at + 1);
  // Copied, as the guest's next frame takes its place.
  const question = message.slice(0, at + 5);
  const name = normalizeName(labels.join("."));
  const { code, address } = await lookUp(name, type === TYPE_A);
  const record = address === undefined ? [] : [
    ...[0xc0, 12, 0, TYPE_A, 0, 1, 0, 0, 0, ANSWER_TTL_S, 0, 4],
    ...addressBytes(address),
  ];
  const answer = Uint8Array.from([...question, ...record]);
  // Authoritative, and as the question was: recursion desired.
  answer.set([0x84 | question[2] & 1, 0x80 | code], 2);
  answer.set([0, 1, 0, record.length > 0 ? 1 : 0, 0, 0, 0, 0], 4);
  return answer;
}
