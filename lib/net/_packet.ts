/**
 * ARP, IPv4, ICMP, UDP and TCP in Ethernet frames (RFC 826, 791, 792, 768, 9293). Frames
 * to the guest begin with their length, as QEMU's stream expects; those from it do not.
 */

/** The guest's network: 198.18.0.0/15, which RFC 2544 reserves for tests. */
export const GATEWAY = 0xc6120001, GUEST = 0xc6120002;
export const NETMASK = 0xfffe0000;
/**
 * An emulated guest pays by the packet; Linux needs twice the memory, which it clears, for
 * one that does not fit 64 KiB with what belongs to it.
 */
export const MTU = 64_000;
export const GUEST_MAC_TEXT = "52:55:c6:12:00:02";
export const GUEST_MAC = Uint8Array.fromHex(GUEST_MAC_TEXT.replaceAll(":", ""));
const GATEWAY_MAC = GUEST_MAC.with(5, 1);

export const ICMP = 1, TCP = 6, UDP = 17;
export const FIN = 1, SYN = 2, RST = 4, ACK = 16;

/** Offsets in a frame to the guest. */
const IP_AT = 18, PAYLOAD_AT = 38;
export const SEGMENT_DATA_AT = 58;

/** Address and port of the guest's peer, and the guest's own port. */
export interface Ends {
  address: number;
  port: number;
  guestPort: number;
}

/** An IPv4 packet of the guest. Ports are 0 if it is too short to have them. */
export interface Ipv4Packet extends Ends {
  protocol: number;
  source: number;
  /** Header and payload. */
  bytes: Uint8Array;
  payload: Uint8Array;
}

/** A TCP segment of the guest. */
export interface TcpSegment extends Ends {
  sequence: number;
  acknowledged: number;
  flags: number;
  window: number;
  options: Uint8Array;
  data: Uint8Array;
}

/** The four bytes of an IPv4 address. */
export function addressBytes(address: number): number[] {
  return [24, 16, 8, 0].map((shift) => address >>> shift & 255);
}

/** Access to numbers in network byte order. */
export function numbersOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Answers an ARP request for any address but the guest's own. */
export function arpReply(frame: Uint8Array): Uint8Array | undefined {
  if (frame.length < 42) return undefined;
  const request = numbersOf(frame);
  const [sender, target] = [request.getUint32(28), request.getUint32(38)];
  // A guest without an address is asking whether its future one is free.
  const isQuestion = request.getUint16(12) === 0x0806 &&
    request.getUint16(20) === 1 && sender === GUEST;
  if (!isQuestion || target === GUEST) return undefined;
  const reply = new Uint8Array(IP_AT + 28);
  writeEthernet(reply, 0x0806);
  reply.set([0, 1, 8, 0, 6, 4, 0, 2, ...GATEWAY_MAC], IP_AT);
  reply.set([...addressBytes(target), ...GUEST_MAC], IP_AT + 14);
  reply.set(addressBytes(GUEST), IP_AT + 24);
  return reply;
}

/** `undefined` if the frame has no IPv4 packet, or a part of one. */
export function parseIpv4(frame: Uint8Array): Ipv4Packet | undefined {
  const header = numbersOf(frame);
  if (frame.length < 34 || header.getUint16(12) !== 0x0800) return undefined;
  const payloadAt = 14 + (frame[14] & 15) * 4;
  const end = 14 + header.getUint16(16);
  const isFragment = (header.getUint16(20) & 0x3fff) !== 0;
  if (
    frame[14] >> 4 !== 4 || payloadAt < 34 || end < payloadAt ||
    end > frame.length || isFragment
  ) return undefined;
  const hasPorts = end - payloadAt >= 8;
  return {
    protocol: frame[23],
    source: header.getUint32(26),
    address: header.getUint32(30),
    guestPort: hasPorts ? header.getUint16(payloadAt) : 0,
    port: hasPorts ? header.getUint16(payloadAt + 2) : 0,
    bytes: frame.subarray(14, end),
    payload: frame.subarray(payloadAt, end),
  };
}

/** `undefined` if the packet's TCP header is malformed. */
export function parseTcp(packet: Ipv4Packet): TcpSegment | undefined {
  const { payload, address, port, guestPort } = packet;
  const dataAt = (payload[12] >> 4) * 4;
  if (!(dataAt >= 20 && dataAt <= payload.length)) return undefined;
  const header = numbersOf(payload);
  return {
    ...{ address, port, guestPort },
    sequence: header.getUint32(4),
    acknowledged: header.getUint32(8),
    flags: payload[13],
    window: header.getUint16(14),
    // Copied, as a SYN is kept while the host connects.
    options: payload.slice(20, dataAt),
    data: payload.subarray(dataAt),
  };
}

/**
 * Completes a TCP segment to the guest. What follows the header is in place: the data, or
 * the options of a SYN.
 */
export function writeTcp(
  frame: Uint8Array,
  segment: Omit<TcpSegment, "options" | "data">,
): Uint8Array {
  const payload = writeIpv4(frame, TCP, segment.address);
  const header = numbersOf(payload);
  header.setUint16(0, segment.port);
  header.setUint16(2, segment.guestPort);
  header.setUint32(4, segment.sequence);
  header.setUint32(8, segment.acknowledged);
  const headerBytes = segment.flags & SYN ? payload.length : 20;
  header.setUint16(12, headerBytes << 10 | segment.flags);
  header.setUint16(14, segment.window);
  const pseudoHeader = [segment.address, GUEST]
    .reduce((sum, it) => sum + (it >>> 16) + (it & 0xffff), TCP);
  header.setUint16(16, checksum(payload, pseudoHeader + payload.length));
  return frame;
}

/** Refuses a segment that has no connection. */
export function resetFrame(segment: TcpSegment): Uint8Array {
  return writeTcp(new Uint8Array(SEGMENT_DATA_AT), {
    ...segment,
    sequence: segment.acknowledged,
    acknowledged: segment.sequence + 1,
    flags: RST | ACK,
  });
}

/** Answers a UDP packet. Over IPv4 the answer needs no checksum. */
export function udpReply(ends: Ends, data: Uint8Array): Uint8Array {
  const frame = new Uint8Array(PAYLOAD_AT + 8 + data.length);
  const payload = writeIpv4(frame, UDP, ends.address);
  numbersOf(payload).setUint32(0, ends.port << 16 | ends.guestPort);
  numbersOf(payload).setUint16(4, payload.length);
  payload.set(data, 8);
  return frame;
}

/** The ICMP error "communication administratively prohibited". */
export function prohibitedFrame(refused: Ipv4Packet): Uint8Array {
  const quoted = refused.bytes.subarray(0, 68);
  const frame = new Uint8Array(PAYLOAD_AT + 8 + quoted.length);
  const payload = writeIpv4(frame, ICMP, refused.address);
  payload.set([3, 13]);
  payload.set(quoted, 8);
  numbersOf(payload).setUint16(2, checksum(payload));
  return frame;
}

function writeEthernet(frame: Uint8Array, type: number) {
  numbersOf(frame).setUint32(0, frame.length - 4);
  frame.set([...GUEST_MAC, ...GATEWAY_MAC, type >> 8, type & 255], 4);
}

/** Returns the packet's payload. */
function writeIpv4(frame: Uint8Array, protocol: number, source: number) {
  writeEthernet(frame, 0x0800);
  const header = frame.subarray(IP_AT, PAYLOAD_AT);
  const numbers = numbersOf(header);
  // Version and header length; not to be fragmented; 64 hops.
  numbers.setUint32(0, 0x45 << 24 | frame.length - IP_AT);
  numbers.setUint32(4, 0x4000);
  numbers.setUint32(8, 64 << 24 | protocol << 16);
  numbers.setUint32(12, source);
  numbers.setUint32(16, GUEST);
  numbers.setUint16(10, checksum(header));
  return frame.subarray(PAYLOAD_AT);
}

/** The Internet checksum (RFC 1071) of bytes at an even offset. */
function checksum(bytes: Uint8Array, startSum = 0): number {
  const { buffer, byteOffset, length } = bytes;
  // In the byte order of the processor, which is fast: only the result is swapped.
  const words = new Uint16Array(buffer, byteOffset, length >> 1);
  let sum = length % 2 ? bytes[length - 1] : 0;
  for (let index = 0; index < words.length; index++) sum += words[index];
  sum %= 0xffff;
  return ~((startSum + ((sum & 255) << 8 | sum >> 8)) % 0xffff) & 0xffff;
}
