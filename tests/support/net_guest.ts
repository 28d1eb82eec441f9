/**
 * The other end of a guest's network: sends crafted frames, as QEMU would, and speaks
 * just enough TCP. Its packets are built here, independently of `lib/net/`.
 */
import { join } from "@std/path";
import type {
  EventWithoutTimestamp,
  ToolsmithEvent,
} from "../../lib/events.ts";
import { GuestNetwork, type NetworkOptions } from "../../lib/net/network.ts";
import { parseEgressRule } from "../../lib/net/rules.ts";

const GUEST_MAC = [0x52, 0x55, 0xc6, 0x12, 0, 2];
const GATEWAY_MAC = [0x52, 0x55, 0xc6, 0x12, 0, 1];
export const GATEWAY = "198.18.0.1";
export const GUEST = "198.18.0.2";
export const FIN = 1, SYN = 2, RST = 4, ACK = 16;

type Bytes = ArrayLike<number>;

/** Header fields of a packet that a test makes. */
export interface PacketOptions {
  /** @default the guest's */
  source?: string;
  /** @default the guest's */
  mac?: number[];
  /** Flags and offset of a fragment. @default 0 */
  fragment?: number;
}

/** A packet that the guest received. */
export interface ReceivedPacket {
  protocol: number;
  source: string;
  payload: Uint8Array;
}

/** A segment that the guest received. */
export interface ReceivedSegment {
  source: string;
  port: number;
  guestPort: number;
  sequence: number;
  acknowledged: number;
  flags: number;
  window: number;
  options: Uint8Array;
  data: Uint8Array;
}

/** Options of {@linkcode startNetGuest}. */
export interface NetGuestOptions
  extends Partial<Omit<NetworkOptions, "rules">> {
  rules?: string[] | "all";
}

/** A guest of its own network. */
export interface NetGuest extends AsyncDisposable {
  network: GuestNetwork;
  path: string;
  events: EventWithoutTimestamp<ToolsmithEvent<"egress">>[];
  /** Sends bytes as they are to the network. */
  sendRaw(bytes: Bytes): Promise<void>;
  sendFrame(frame: Bytes): Promise<void>;
  sendIp(
    protocol: number,
    to: string,
    payload: Bytes,
    options?: PacketOptions,
  ): Promise<void>;
  sendUdp(to: string, port: number, data: Bytes, from?: number): Promise<void>;
  /** The next frame that nobody else takes: ARP, UDP, ICMP. */
  nextFrame(): Promise<Uint8Array>;
  nextIp(): Promise<ReceivedPacket>;
  /** Asks the gateway, or another server, for a name. */
  ask(name: string, options?: { type?: number; server?: string }): Promise<
    { code: number; address?: string }
  >;
  /** Looks a name up and connects. */
  connect(
    to: string,
    port: number,
    options?: ConnectOptions,
  ): Promise<NetConnection>;
  /** Frames to the guest that `lose` returns true for disappear. */
  lose?: (segment: ReceivedSegment) => boolean;
  /** Settles when the network has hung up. */
  ended: Promise<void>;
}

export interface ConnectOptions {
  window?: number;
  /** Acknowledge what arrives. @default true */
  acknowledges?: boolean;
  mss?: number;
}

/** A TCP connection of the guest. */
export interface NetConnection {
  guestPort: number;
  /** Sends data; resolves when it is acknowledged. */
  write(data: Bytes | string): Promise<void>;
  /** Sends a segment without waiting. */
  send(flags: number, data?: Bytes, at?: { sequence?: number }): Promise<void>;
  /** Sends FIN. */
  end(): Promise<void>;
  /** All data until the host's FIN. */
  readAll(): Promise<Uint8Array>;
  /** Waits until at least this much text arrived. */
  readText(length: number): Promise<string>;
  /** Waits until the host has reset the connection. */
  reset(): Promise<void>;
  acknowledge(): Promise<void>;
  window: number;
  acknowledges: boolean;
  /** All segments that arrived. */
  segments: ReceivedSegment[];
  /** Waits for a segment, also among those that have arrived. */
  segment(
    fits: (it: ReceivedSegment) => boolean,
  ): Promise<ReceivedSegment>;
}

/** Starts a network with a guest on it. */
export async function startNetGuest(
  options: NetGuestOptions = {},
): Promise<NetGuest> {
  const dir = await Deno.makeTempDir();
  const path = join(dir, "net");
  const events: NetGuest["events"] = [];
  const { rules = [], ...rest } = options;
  const network = new GuestNetwork({
    path,
    emit: (event) => void events.push(event as ToolsmithEvent<"egress">),
    ...rest,
    rules: rules === "all" ? rules : rules.map(parseEgressRule),
  });
  const link = await Deno.connect({ transport: "unix", path });
  const frames = queue<Uint8Array>();
  const connections = new Map<number, (it: ReceivedSegment) => void>();
  let sending = Promise.resolve();
  let nextPort = 40000;
  const sendRaw = (bytes: Bytes) =>
    sending = sending.then(async () => {
      let left = Uint8Array.from(bytes);
      while (left.length > 0) left = left.subarray(await link.write(left));
    }).catch(() => {});
  const sendFrame = (frame: Bytes) => {
    const all = new Uint8Array(4 + frame.length);
    new DataView(all.buffer).setUint32(0, frame.length);
    all.set(frame, 4);
    return sendRaw(all);
  };
  const sendIp: NetGuest["sendIp"] = (protocol, to, payload, about = {}) =>
    sendFrame(ipFrame(protocol, to, payload, about));
  const hungUp = Promise.withResolvers<void>();
  const readFrames = async () => {
    const buffer = new Uint8Array(1 << 20);
    let held = 0;
    while (true) {
      const count = await link.read(buffer.subarray(held)).catch(() => null);
      if (count === null) return;
      held += count;
      let at = 0;
      while (held - at >= 4) {
        const end = at + 4 + new DataView(buffer.buffer).getUint32(at);
        if (end > held) break;
        take(buffer.slice(at + 4, end));
        at = end;
      }
      buffer.copyWithin(0, at, held);
      held -= at;
    }
  };
  const take = (frame: Uint8Array) => {
    const packet = parseIp(frame);
    if (packet?.protocol !== 6) return frames.push(frame);
    const segment = parseSegment(packet);
    if (!guest.lose?.(segment)) connections.get(segment.guestPort)?.(segment);
  };
  const guest: NetGuest = {
    network,
    path,
    events,
    ended: hungUp.promise,
    sendRaw,
    sendFrame,
    sendIp,
    sendUdp: (to, port, data, from = 5000) =>
      sendIp(17, to, [
        ...u16(from),
        ...u16(port),
        ...u16(8 + data.length),
        0,
        0,
        ...Array.from(data),
      ]),
    nextFrame: frames.next,
    nextIp: async () => parseIp(await frames.next())!,
    async ask(name, { type = 1, server = GATEWAY } = {}) {
      await guest.sendUdp(server, 53, dnsQuery(name, type));
      const { payload } = await guest.nextIp();
      const answer = payload.subarray(8);
      const address = answer[7] ? [...answer.slice(-4)].join(".") : undefined;
      return { code: answer[3] & 15, address };
    },
    async connect(to, port, about = {}) {
      const isAddress = /^[\d.]+$/.test(to);
      const { address } = isAddress ? { address: to } : await guest.ask(to);
      if (!address) throw new Error(`no address: ${to}`);
      const guestPort = nextPort++;
      const made = makeConnection({ address, port, guestPort }, about, sendIp);
      connections.set(guestPort, made.take);
      await made.open();
      return made.connection;
    },
    async [Symbol.asyncDispose]() {
      link.close();
      await network[Symbol.asyncDispose]();
      await hungUp.promise;
      await Deno.remove(dir, { recursive: true });
    },
  };
  readFrames().then(hungUp.resolve);
  return guest;
}

function makeConnection(
  to: { address: string; port: number; guestPort: number },
  { window = 65535, acknowledges = true, mss = 65495 }: ConnectOptions,
  sendIp: NetGuest["sendIp"],
) {
  let sequence = 0xfffffff0;
  let acknowledged = 0;
  let expected = 0;
  const received: Uint8Array[] = [];
  let [isReset, hasEnded] = [false, false];
  let changed = Promise.withResolvers<void>();
  const send: NetConnection["send"] = (flags, data = [], at = {}) => {
    const from = at.sequence ?? sequence;
    const options = flags & SYN ? [2, 4, mss >> 8, mss & 255, 3, 3, 0, 0] : [];
    const header = [
      ...u16(to.guestPort),
      ...u16(to.port),
      ...u32(from),
      ...u32(expected),
      (20 + options.length) / 4 << 4,
      flags,
      ...u16(connection.window),
      0,
      0,
      0,
      0,
      ...options,
    ];
    const segment = new Uint8Array(header.length + data.length);
    segment.set(header);
    segment.set(data, header.length);
    if (at.sequence === undefined) {
      sequence = sequence + data.length + (flags & (SYN | FIN) ? 1 : 0) >>> 0;
    }
    return sendIp(6, to.address, segment);
  };
  const until = async (isDone: () => boolean) => {
    while (!isDone()) {
      if (isReset) throw new Error("reset");
      await changed.promise;
    }
  };
  const bytes = () => {
    const all = new Uint8Array(received.reduce((n, it) => n + it.length, 0));
    received.reduce((at, it) => (all.set(it, at), at + it.length), 0);
    return all;
  };
  const connection: NetConnection = {
    guestPort: to.guestPort,
    window,
    acknowledges,
    segments: [],
    send,
    acknowledge: () => send(ACK),
    async write(data) {
      const all = typeof data === "string"
        ? new TextEncoder().encode(data)
        : Uint8Array.from(data);
      for (let at = 0; at < all.length; at += 60000) {
        await send(ACK, all.subarray(at, at + 60000));
        await until(() => acknowledged === sequence);
      }
    },
    end: () => send(ACK | FIN),
    async readAll() {
      await until(() => hasEnded);
      return bytes();
    },
    async readText(length) {
      await until(() => bytes().length >= length);
      return new TextDecoder().decode(bytes());
    },
    async reset() {
      await until(() => isReset).catch(() => {});
    },
    async segment(fits) {
      for (let at = 0;; at++) {
        await until(() => connection.segments.length > at);
        if (fits(connection.segments[at])) return connection.segments[at];
      }
    },
  };
  return {
    connection,
    async open() {
      await send(SYN);
      await until(() => expected !== 0);
      await send(ACK);
    },
    take(segment: ReceivedSegment) {
      connection.segments.push(segment);
      const { flags, data } = segment;
      if (flags & RST) isReset = true;
      if (flags & SYN) expected = segment.sequence + 1 >>> 0;
      if (flags & ACK) acknowledged = segment.acknowledged;
      const isNext = segment.sequence === expected && !(flags & SYN);
      if (isNext && connection.acknowledges) {
        if (data.length > 0) received.push(data);
        expected = expected + data.length + (flags & FIN ? 1 : 0) >>> 0;
        if (flags & FIN) hasEnded = true;
      }
      const needsAnswer = data.length > 0 || flags & FIN;
      if (needsAnswer && connection.acknowledges) send(ACK);
      changed.resolve();
      changed = Promise.withResolvers();
    },
  };
}

/** A frame of the guest with an IPv4 packet. */
export function ipFrame(
  protocol: number,
  to: string,
  payload: Bytes,
  { source = GUEST, mac = GUEST_MAC, fragment = 0 }: PacketOptions = {},
): Uint8Array {
  const header = [
    ...GATEWAY_MAC,
    ...mac,
    8,
    0,
    0x45,
    0,
    ...u16(20 + payload.length),
    0,
    0,
    ...u16(fragment),
    64,
    protocol,
    0,
    0,
    ...source.split(".").map(Number),
    ...to.split(".").map(Number),
  ];
  const frame = new Uint8Array(header.length + payload.length);
  frame.set(header);
  frame.set(payload, header.length);
  return frame;
}

/** A DNS query with one question. */
export function dnsQuery(name: string, type = 1): number[] {
  const labels = name.split(".").filter((it) => it !== "").flatMap((label) => [
    label.length,
    ...new TextEncoder().encode(label),
  ]);
  return [7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, ...labels, 0, ...u16(type), 0, 1];
}

/** Verifies the header's checksum. */
export function parseIp(frame: Uint8Array): ReceivedPacket | undefined {
  if (frame[12] !== 8 || frame[13] !== 0) return undefined;
  if (onesSum(frame.subarray(14, 34)) !== 0xffff) {
    throw new Error("wrong IP checksum");
  }
  const source = [...frame.subarray(26, 30)].join(".");
  return { protocol: frame[23], source, payload: frame.subarray(34) };
}

function parseSegment({ source, payload }: ReceivedPacket): ReceivedSegment {
  const pseudo = [...source.split("."), ...GUEST.split(".")].map(Number);
  const all = Uint8Array.from([...pseudo, 0, 6, ...u16(payload.length)]);
  const sum = onesSum(all) + onesSum(payload);
  if (sum % 0xffff !== 0) throw new Error("wrong TCP checksum");
  const numbers = new DataView(payload.buffer, payload.byteOffset);
  const dataAt = (payload[12] >> 4) * 4;
  return {
    source,
    port: numbers.getUint16(0),
    guestPort: numbers.getUint16(2),
    sequence: numbers.getUint32(4),
    acknowledged: numbers.getUint32(8),
    flags: payload[13],
    window: numbers.getUint16(14),
    options: payload.subarray(20, dataAt),
    data: payload.subarray(dataAt),
  };
}

export function onesSum(bytes: Uint8Array): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at++) {
    sum += at % 2 ? bytes[at] : bytes[at] << 8;
  }
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 65536);
  return sum;
}

export function u16(value: number): number[] {
  return [value >> 8 & 255, value & 255];
}

export function u32(value: number): number[] {
  return [24, 16, 8, 0].map((shift) => value >>> shift & 255);
}

function queue<T>() {
  const items: T[] = [];
  const waiting: ((item: T) => void)[] = [];
  return {
    push(item: T) {
      const taker = waiting.shift();
      if (taker) taker(item);
      else items.push(item);
    },
    next: (): Promise<T> =>
      items.length > 0
        ? Promise.resolve(items.shift()!)
        : new Promise((done) => waiting.push(done)),
  };
}
