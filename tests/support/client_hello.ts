/** Builds TLS ClientHello messages. */
import { u16 } from "./net_guest.ts";

/** Extensions by type, in order. */
export type TlsExtensions = [type: number, content: number[]][];

export const GREASE = 0x0a0a;
const ECH = 0xfe0d;

export function serverName(name: string): [number, number[]] {
  const bytes = Array.from(new TextEncoder().encode(name));
  const entry = [0, ...u16(bytes.length), ...bytes];
  return [0, [...u16(entry.length), ...entry]];
}

export const ENCRYPTED_HELLO: [number, number[]] = [ECH, [0, 0, 1, 0, 1, 5]];

/** A ClientHello as a handshake message. */
export function clientHello(
  extensions: TlsExtensions | undefined,
  padding = 0,
): Uint8Array {
  const all = (extensions ?? []).flatMap(([type, content]) => [
    ...u16(type),
    ...u16(content.length),
    ...content,
  ]);
  const body = [
    ...[3, 3, ...Array(32).fill(7), 32, ...Array(32).fill(9)],
    ...[0, 6, ...u16(GREASE), 0x13, 1, 0x13, 2, 1, 0],
    ...extensions ? [...u16(all.length), ...all] : [],
    ...Array(padding).fill(0),
  ];
  return Uint8Array.from([1, 0, ...u16(body.length), ...body]);
}

/** A message in records with at most `size` bytes each. */
export function tlsRecords(message: Uint8Array, size = 16384): Uint8Array {
  const records: number[] = [];
  for (let at = 0; at < message.length; at += size) {
    const part = message.subarray(at, at + size);
    records.push(22, 3, 1, ...u16(part.length), ...part);
  }
  return Uint8Array.from(records);
}
