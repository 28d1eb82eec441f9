/**
 * A network of one guest that ends in this process, and decides by name what leaves it.
 * QEMU hands each Ethernet frame over a socket (`-netdev stream`), and no frame goes
 * anywhere else: what this package does not answer does not exist for the guest.
 *
 *     guest            curl https://pypi.org/
 *       │ virtio-net card, 198.18.0.2/15, gateway and DNS 198.18.0.1
 *     QEMU             4 bytes of length, then the frame
 *       │ Unix socket in the VM's directory (_frame_link.ts)
 *     network.ts       spoofed source, fragment, IPv6: dropped
 *       │
 *       ├─ ARP ──────  _packet.ts  the gateway has every address but the guest's
 *       ├─ UDP 67 ───  _gateway.ts always the same lease
 *       ├─ UDP 53 ───  _gateway.ts "pypi.org?"
 *       │                rules.ts  no rule: the name does not exist
 *       │                lookup    the name does not exist, or the host cannot tell
 *       │                else      198.19.0.0 stands for pypi.org from now on
 *       ├─ other UDP, ping         ICMP: prohibited
 *       └─ TCP ──────  198.19.0.0:443 is pypi.org:443
 *            rules.ts    no rule for name and port: RST
 *            lookup      again: addresses; those that are private are left out
 *                        (_dial.ts)
 *            dial        exactly these addresses; none answers: RST
 *            _tcp.ts     only now SYN-ACK; _relay.ts forwards both ways
 *            │
 *            ├─ guest → host   _traffic.ts holds what it has not judged:
 *            │    TLS          the ClientHello names pypi.org (_client_hello.ts)
 *            │    HTTP         each request names pypi.org
 *            │    other        forwarded, except on ports 80 and 443
 *            │    refused      RST to the guest, and the host hangs up
 *            └─ host → guest   as it comes
 *
 * An address that is written as a rule is dialed as it is, and nothing is judged, as there
 * is no name. `--network` has no rules: it dials what the guest asks for, except this host.
 *
 * **Memory.** The guest decides how much it sends and how little it reads, so everything
 * has a limit: frames, connections, dials, lookups, names, and the bytes that connections
 * hold (_tcp.ts). Beyond it, something of the guest is dropped or refused. A slow guest
 * slows the server, and the other way round: nobody reads what it cannot hand on.
 *
 * **Trust.** Whatever the guest sends is hostile; what it is shown, it may keep. What is
 * checked is what is used: an address that passed is dialed as a literal.
 */
import type { Emit } from "../events.ts";
import { parseIpBits } from "../system/ip_address.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { abortable } from "../system/time.ts";
import { dial, lookUpAddresses } from "./_dial.ts";
import { FrameLink } from "./_frame_link.ts";
import * as gateway from "./_gateway.ts";
import * as packet from "./_packet.ts";
import { relay } from "./_relay.ts";
import { TcpConnection, type TcpLink } from "./_tcp.ts";
import { ANY_HOST, type EgressRule, findRule, RefusedError } from "./rules.ts";

/** What a guest's network needs. */
export interface NetworkOptions {
  /** Path of the socket that QEMU connects to. */
  path: string;
  /** What the guest may reach; `"all"` is everything but this host. */
  rules: EgressRule[] | "all";
  /** Receives an `egress` event for each decision. */
  emit: Emit;
  /** Looks up the addresses of a name. @default the host's resolver */
  resolve?: (name: string) => Promise<string[]>;
}

const MAX_CONNECTIONS = 512;
const MAX_DIALS = 64;
const MAX_LOOKUPS = 64;
/** A rule with a wildcard lets a guest invent names. */
const MAX_NAMES = 4096;
/** 198.19.0.0: the first address that stands for a name. */
const FIRST_NAME_ADDRESS = 0xc6130000;
const TICK_MS = 250;
const MAX_EVENTS_PER_TICK = 200;

/**
 * Serves the guest of the QEMU that connects, until it is disposed.
 *
 * Needs `--allow-read` and `--allow-write` for the socket, and `--allow-net`. With
 * `--allow-sys=networkInterfaces` the host's own public addresses are refused, too.
 */
export class GuestNetwork implements TcpLink, AsyncDisposable {
  /** How the guest's card has to be configured. */
  readonly card = {
    mac: packet.GUEST_MAC_TEXT,
    mtu: packet.MTU,
    address: packet.addressBytes(packet.GUEST).join("."),
    bits: 15,
    mask: packet.addressBytes(packet.NETMASK).join("."),
    gateway: packet.addressBytes(packet.GATEWAY).join("."),
  };
  heldBytes = 0;
  readonly #options: NetworkOptions;
  readonly #link: FrameLink;
  readonly #closing = new AbortController();
  /** Their order gives each name its address. */
  readonly #names: string[] = [];
  readonly #connections = new Map<string, TcpConnection>();
  readonly #dialing = new Map<string, AbortController>();
  /** What the host is connected to, or will be; the guest may have forgotten some. */
  readonly #relays = new Set<Promise<void>>();
  readonly #serving: Promise<void>;
  #lookups = 0;
  /** In this tick; apart, so that a flood of refused ones does not hide others. */
  readonly #events = { allowed: 0, refused: 0 };

  constructor(options: NetworkOptions) {
    this.#options = options;
    this.#link = new FrameLink(options.path);
    this.#serving = this.#serve();
  }

  async [Symbol.asyncDispose]() {
    this.#link.close();
    await this.#serving;
  }

  async #serve() {
    const timer = setInterval(() => this.#tick(), TICK_MS);
    await this.#link.serve((frame) => this.#receive(frame));
    clearInterval(timer);
    this.#closing.abort(new Deno.errors.ConnectionReset());
    await Promise.all(this.#relays);
  }

  send(frame: Uint8Array) {
    this.#link.send(frame);
  }

  #receive(frame: Uint8Array) {
    if (!packet.GUEST_MAC.every((it, at) => frame[6 + at] === it)) return;
    const reply = packet.arpReply(frame);
    if (reply) return this.send(reply);
    const ipPacket = packet.parseIpv4(frame);
    if (!ipPacket) return;
    const { protocol, address, port, payload } = ipPacket;
    const isUdp = protocol === packet.UDP;
    if (isUdp && port === 67) {
      const lease = gateway.dhcpReply(payload.subarray(8));
      const ends = { ...ipPacket, address: packet.GATEWAY };
      return lease && this.send(packet.udpReply(ends, lease));
    }
    if (ipPacket.source !== packet.GUEST) return;
    if (isUdp && port === 53) {
      return void this.#answer(ipPacket).catch(() => {});
    }
    if (protocol === packet.TCP) {
      const segment = packet.parseTcp(ipPacket);
      return segment && this.#receiveSegment(segment);
    }
    // No error answers a multicast, a broadcast, or another error.
    const isPing = protocol === packet.ICMP && payload[0] === 8;
    if (address >>> 28 >= 14 || protocol === packet.ICMP && !isPing) return;
    const what = isPing ? "ping" : isUdp ? "UDP" : "IP protocol";
    const to = { host: this.#hostOf(address), port: isUdp && port || null };
    this.#report(to, what);
    this.send(packet.prohibitedFrame(ipPacket));
  }

  async #answer(query: packet.Ipv4Packet) {
    const answer = await gateway.dnsAnswer(
      query.payload.subarray(8),
      (name, isForAddress) => this.#lookUp(name, isForAddress),
    );
    if (answer) this.send(packet.udpReply(query, answer));
  }

  /** Whether the guest may know a name, and the address that stands for it. */
  async #lookUp(
    name: string,
    isForAddress: boolean,
  ): Promise<gateway.DnsResult> {
    const rule = findRule(this.#options.rules, name);
    if (!rule) {
      this.#report({ host: name, port: null }, "no rule allows this name");
      return gateway.NAME_ERROR;
    }
    if (!/^[\w.-]+$/.test(name)) return gateway.NAME_ERROR;
    if (!rule.target) {
      if (this.#lookups === MAX_LOOKUPS) return gateway.SERVER_FAILURE;
      this.#lookups++;
      try {
        await this.#resolve(name);
      } catch (error) {
        const isUnknown = (error as { code?: string }).code === "ENOTFOUND";
        return isUnknown ? gateway.NAME_ERROR : gateway.SERVER_FAILURE;
      } finally {
        this.#lookups--;
      }
    }
    if (!isForAddress) return { code: 0 };
    const { length } = this.#names;
    const known = this.#names.indexOf(name);
    if (known < 0 && length === MAX_NAMES) return gateway.SERVER_FAILURE;
    const index = known < 0 ? this.#names.push(name) - 1 : known;
    return { code: 0, address: FIRST_NAME_ADDRESS + index };
  }

  #receiveSegment(segment: packet.TcpSegment) {
    const { address, port, flags } = segment;
    const key = keyOf(segment);
    const known = this.#connections.get(key);
    if (known && !known.isClosed) return known.receive(segment);
    const dialing = this.#dialing.get(key);
    if (flags & packet.RST) {
      return dialing?.abort(new Deno.errors.ConnectionReset());
    }
    if (dialing) return;
    if ((flags & (packet.SYN | packet.ACK)) !== packet.SYN) {
      return this.send(packet.resetFrame(segment));
    }
    // The guest asks again.
    if (this.#dialing.size === MAX_DIALS) return;
    const to = { host: this.#hostOf(address), port };
    const rule = findRule(this.#options.rules, to.host, port);
    if (!rule || this.#relays.size >= MAX_CONNECTIONS) {
      const reason = "no rule allows this host and port";
      this.#report(to, rule ? "too many connections" : reason);
      return this.send(packet.resetFrame(segment));
    }
    const relayed = this.#connect(segment, to, rule).catch(() => {})
      .finally(() => this.#relays.delete(relayed));
    this.#relays.add(relayed);
  }

  async #connect(
    syn: packet.TcpSegment,
    to: { host: string; port: number },
    rule: EgressRule,
  ) {
    const key = keyOf(syn);
    const reset = new AbortController();
    const { signal: closing } = this.#closing;
    const signal = AbortSignal.any([reset.signal, closing]);
    const resolve = (name: string) => this.#resolve(name);
    let connection: TcpConnection | undefined;
    this.#dialing.set(key, reset);
    try {
      using peer = await dial(to, { rule, resolve, signal });
      signal.throwIfAborted();
      // At once, as a repeated segment must find the one or the other.
      this.#dialing.delete(key);
      connection = new TcpConnection(syn, this);
      this.#connections.set(key, connection);
      const isFree = rule === ANY_HOST;
      this.#report(to, isFree ? rule.text : `rule ${rule.text}`, true);
      const isName = parseIpBits(to.host) === undefined;
      const judged = isName && !isFree ? to : undefined;
      await relay(connection, peer, { judged, signal: closing });
    } catch (error) {
      const isRefused = error instanceof RefusedError;
      if (!connection) {
        this.#dialing.delete(key);
        if (signal.aborted) return;
        this.send(packet.resetFrame(syn));
      }
      if (isRefused) this.#report(to, error.message);
      else if (!connection) {
        this.#report(to, `cannot connect: ${(error as Error).message}`, true);
      }
    }
  }

  async #resolve(name: string): Promise<string[]> {
    const { resolve = lookUpAddresses } = this.#options;
    // A resolver may take long, and its lookups cannot be cancelled.
    return await abortable(resolve(name), this.#closing.signal);
  }

  #hostOf(address: number): string {
    return this.#names[address - FIRST_NAME_ADDRESS] ??
      packet.addressBytes(address).join(".");
  }

  #report(
    to: { host: string; port: number | null },
    reason: string,
    allowed = false,
  ) {
    const kind = allowed ? "allowed" : "refused";
    if (this.#events[kind]++ >= MAX_EVENTS_PER_TICK) return;
    const texts = { host: sanitizeLine(to.host), reason: sanitizeLine(reason) };
    this.#options.emit({ type: "egress", allowed, ...to, ...texts });
  }

  #tick() {
    for (const [key, connection] of this.#connections) {
      if (connection.isClosed) this.#connections.delete(key);
      else connection.tick();
    }
    for (const kind of ["allowed", "refused"] as const) {
      const more = this.#events[kind] - MAX_EVENTS_PER_TICK;
      this.#events[kind] = 0;
      if (more <= 0) continue;
      const all = { host: "*", port: null };
      this.#report(all, `${more} more`, kind === "allowed");
    }
  }
}

function keyOf({ guestPort, address, port }: packet.Ends): string {
  return `${guestPort} ${address} ${port}`;
}
