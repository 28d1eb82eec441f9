/**
 * Answers the guest's DNS questions (RFC 1035, section 4): a name gets an address of the
 * guest's own network, which stands for the name from then on.
 *
 * @module
 */
import { addressBytes, numbersOf } from "./_packet.ts";
import { normalizeName } from "./rules.ts";

/** DNS types, classes and response codes. */
export const TYPE_A = 1;
export const NO_ERROR = 0, SERVER_FAILURE = 2, NAME_ERROR = 3;
const ANSWER_TTL_S = 60;
/** 198.19.0.0: the first address of names. */
const FIRST_ADDRESS = 0xc6130000;
/** A rule with a wildcard lets a guest invent names. */
const MAX_NAMES = 4096;

/** One question, as the only content of a message. */
export interface DnsQuestion {
  name: string;
  type: number;
  /** The message up to the end of the question. */
  message: Uint8Array;
}

/** `undefined` if the message is not a query with one question. */
export function parseDnsQuery(message: Uint8Array): DnsQuestion | undefined {
  const [, , flags, , , questions] = message;
  if (message.length < 12 || flags >> 3 !== 0 || questions !== 1) return;
  const labels: string[] = [];
  let at = 12;
  while (message[at] > 0) {
    const label = message.subarray(at + 1, at + 1 + message[at]);
    // Also refuses a reference to another name, as there is none.
    if (message[at] > 63) return undefined;
    labels.push(String.fromCharCode(...label));
    at += 1 + message[at];
  }
  if (at + 5 > message.length || at > 12 + 255) return undefined;
  const type = numbersOf(message).getUint16(at + 1);
  const name = normalizeName(labels.join("."));
  return { name, type, message: message.slice(0, at + 5) };
}

/** An answer without records, or with an IPv4 address. */
export function dnsAnswer(
  { message }: DnsQuestion,
  code: number,
  address?: number,
): Uint8Array {
  const record = address === undefined
    ? []
    : [0xc0, 12, 0, TYPE_A, 0, 1, 0, 0, 0, ANSWER_TTL_S, 0, 4];
  const bytes = address === undefined ? [] : addressBytes(address);
  const answer = Uint8Array.from([...message, ...record, ...bytes]);
  // Authoritative, and as the question was: recursion desired.
  answer.set([0x84 | message[2] & 1, 0x80 | code], 2);
  answer.set([0, 1, 0, record.length > 0 ? 1 : 0, 0, 0, 0, 0], 4);
  return answer;
}

/** The addresses that stand for names. */
export class GuestNames {
  readonly #names: string[] = [];
  readonly #indices = new Map<string, number>();

  /** `undefined` if there are too many names. */
  addressOf(name: string): number | undefined {
    let index = this.#indices.get(name);
    if (index === undefined) {
      if (this.#names.length === MAX_NAMES) return undefined;
      index = this.#names.push(name) - 1;
      this.#indices.set(name, index);
    }
    return FIRST_ADDRESS + index;
  }

  nameOf(address: number): string | undefined {
    return this.#names[address - FIRST_ADDRESS];
  }
}
