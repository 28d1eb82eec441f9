/**
 * Reads the server name of a TLS ClientHello (RFC 8446, section 4.1.2; RFC 6066, section
 * 3).
 */
import { RefusedError } from "./rules.ts";

const SERVER_NAME = 0;
/** Encrypted ClientHello (RFC 9849), and the draft before it, ESNI. */
const ENCRYPTED_EXTENSIONS = [0xfe0d, 0xffce];

/**
 * Returns the name that the client asks for.
 *
 * @param message The handshake message, with its type and length.
 * @throws {RefusedError} Without a name, with an encrypted one, or if the message is
 * malformed.
 */
export function serverNameOf(message: Uint8Array): string {
  let at = 0;
  const take = (count: number) => {
    at += count;
    if (at <= message.length) return message.subarray(at - count, at);
    throw new RefusedError("malformed TLS ClientHello");
  };
  const number = (bytes: number) =>
    take(bytes).reduce((sum, byte) => sum << 8 | byte, 0);
  const assertEnd = (end: number) => {
    if (at !== end) throw new RefusedError("malformed TLS ClientHello");
  };
  if (number(1) !== 1) throw new RefusedError("TLS without a ClientHello");
  assertEnd(message.length - number(3));
  take(2 + 32);
  // Session id, cipher suites, compression methods.
  for (const bytes of [1, 2, 1]) take(number(bytes));
  if (at === message.length) throw new RefusedError("TLS without server name");
  assertEnd(message.length - number(2));
  let name: string | undefined;
  while (at < message.length) {
    const type = number(2);
    const length = number(2);
    if (ENCRYPTED_EXTENSIONS.includes(type)) {
      throw new RefusedError("TLS with an encrypted server name (ECH)");
    }
    const end = at + length;
    if (type !== SERVER_NAME) {
      take(length);
      continue;
    }
    // One list of one name of the type "host name".
    assertEnd(end - number(2));
    const isHostName = number(1) === 0 && name === undefined;
    name = String.fromCharCode(...take(number(2)));
    if (!isHostName) throw new RefusedError("malformed TLS server name");
    assertEnd(end);
  }
  if (name) return name;
  throw new RefusedError("TLS without server name");
}
