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
 *       ├─ UDP 67 ───  _dhcp.ts    always the same lease
 *       ├─ UDP 53 ───  _dns.ts     "pypi.org?"
 *       │                rules.ts  no rule: the name does not exist
 *       │                lookup    the name does not exist, or the host cannot tell
 *       │                else      198.19.0.0 stands for pypi.org from now on
 *       ├─ other UDP, ping         ICMP: prohibited
 *       └─ TCP ──────  198.19.0.0:443 is pypi.org:443
 *            rules.ts    no rule for name and port: RST
 *            lookup      again: addresses; those that are private are left out
 *                        (_addresses.ts)
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
 *
 * @module
 */
import type { Emit } from "../events.ts";
import { parseIpBits } from "../system/ip_address.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { abortable, startDeadline } from "../system/time.ts";
import { dhcpReply } from "./_dhcp.ts";
import { lookUpAddresses, reachableAddresses } from "./_addresses.ts";
import * as dns from "./_dns.ts";
import { FrameLink } from "./_frame_link.ts";
import * as packet from "./_packet.ts";
import { closeQuietly, relay } from "./_relay.ts";
import { ConnectionResetError, TcpConnection, type TcpLink } from "./_tcp.ts";
import { type EgressRule, findRule, RefusedError } from "./rules.ts";

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
const MAX_ADDRESSES_TRIED = 4;
const DIAL_TIMEOUT_MS = 10_000;
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
  readonly #names = new dns.GuestNames();
  readonly #connections = new Map<string, TcpConnection>();
  /** What the host is connected to; the guest may have forgotten some. */
  readonly #peers = new Set<Deno.TcpConn>();
  /** What runs besides the frames: dials, lookups and connections. */
  readonly #work = new Set<Promise<void>>();
  readonly #unacknowledged = new Set<TcpConnection>();
  readonly #serving: Promise<void>;
  #dials = 0;
  #lookups = 0;
  /** In this tick; apart, so that a flood of refused ones does not hide others. */
  readonly #events = { allowed: 0, refused: 0 };

  constructor(options: NetworkOptions) {
    this.#options = options;
    this.#link = new FrameLink(options.path);
    this.#serving = this.#serve();
  }

  async [Symbol.asyncDispose]() {
    this.#end();
    await this.#serving;
  }

  async #serve() {
    const timer = setInterval(() => this.#tick(), TICK_MS);
    await this.#link.serve({
      receive: (frame) => this.#receive(frame),
      received: () => {
        this.#unacknowledged.forEach((it) => it.acknowledge());
        this.#unacknowledged.clear();
      },
    });
    this.#end();
    await Promise.all(this.#work);
    clearInterval(timer);
  }

  #end() {
    this.#closing.abort(new ConnectionResetError());
    this.#link.close();
    this.#connections.forEach((it) => it.reset());
    this.#peers.forEach(closeQuietly);
  }

  send(frame: Uint8Array) {
    this.#link.send(frame);
  }

  acknowledgeSoon(connection: TcpConnection) {
    this.#unacknowledged.add(connection);
  }

  closed(connection: TcpConnection) {
    const key = keyOf(connection.peer);
    if (this.#connections.get(key) === connection) {
      this.#connections.delete(key);
    }
  }

  #receive(frame: Uint8Array) {
    const isFromGuest = packet.GUEST_MAC.every((it, at) =>
      frame[6 + at] === it
    );
    if (!isFromGuest) return;
    const isArp = frame[12] === 8 && frame[13] === 6;
    const reply = isArp && packet.arpReply(frame);
    if (reply) return this.send(reply);
    const ipPacket = packet.parseIpv4(frame);
    if (!ipPacket) return;
    const { protocol, source, destination, payload } = ipPacket;
    const ports = payload.length < 8 ? [] : [0, 2];
    const [guestPort, port] = ports.map((at) =>
      packet.numbersOf(payload).getUint16(at)
    );
    if (protocol === packet.UDP && port === 67) {
      const lease = dhcpReply(payload.subarray(8));
      const server = { address: packet.GATEWAY, port };
      return lease && this.send(packet.udpFrame(server, guestPort, lease));
    }
    if (source !== packet.GUEST) return;
    if (protocol === packet.UDP && port === 53) {
      return this.#track(this.#answer(ipPacket));
    }
    if (protocol === packet.TCP) {
      const segment = packet.parseTcp(ipPacket);
      return segment && this.#receiveSegment(segment);
    }
    // No error answers a multicast, a broadcast, or another error.
    const isPing = protocol === 1 && payload[0] === 8;
    if (destination >>> 28 >= 14 || protocol === 1 && !isPing) return;
    const isUdp = protocol === packet.UDP;
    const what = isPing ? "ping" : isUdp ? "UDP" : "IP protocol";
    const host = this.#hostOf(destination);
    this.#report({ host, port: isUdp ? port ?? null : null }, what);
    this.send(packet.prohibitedFrame(ipPacket));
  }

  async #answer(ipPacket: packet.Ipv4Packet) {
    const guestPort = packet.numbersOf(ipPacket.payload).getUint16(0);
    const question = dns.parseDnsQuery(ipPacket.payload.subarray(8));
    if (!question) return;
    const { name, type } = question;
    const server = { address: ipPacket.destination, port: 53 };
    let code = await this.#lookUp(name);
    const address = code === dns.NO_ERROR && type === dns.TYPE_A
      ? this.#names.addressOf(name)
      : undefined;
    if (code === dns.NO_ERROR && type === dns.TYPE_A && !address) {
      code = dns.SERVER_FAILURE;
    }
    this.send(
      packet.udpFrame(
        server,
        guestPort,
        dns.dnsAnswer(question, code, address),
      ),
    );
  }

  /** Whether the guest may know a name, as the code of a DNS answer. */
  async #lookUp(name: string): Promise<number> {
    const { rules } = this.#options;
    const rule = rules === "all" ? undefined : findRule(rules, name);
    if (rules !== "all" && !rule) {
      this.#report({ host: name, port: null }, "no rule allows this name");
      return dns.NAME_ERROR;
    }
    if (!/^[\w.-]+$/.test(name)) return dns.NAME_ERROR;
    if (rule?.target) return dns.NO_ERROR;
    if (this.#lookups === MAX_LOOKUPS) return dns.SERVER_FAILURE;
    this.#lookups++;
    try {
      await this.#resolve(name);
      return dns.NO_ERROR;
    } catch (error) {
      const isUnknown = (error as { code?: string }).code === "ENOTFOUND";
      return isUnknown ? dns.NAME_ERROR : dns.SERVER_FAILURE;
    } finally {
      this.#lookups--;
    }
  }

  #receiveSegment(segment: packet.TcpSegment) {
    const known = this.#connections.get(keyOf(segment));
    if (known) return known.receive(segment);
    const { address, port, flags, acknowledged, sequence } = segment;
    if (flags & packet.RST) return;
    if ((flags & (packet.SYN | packet.ACK)) !== packet.SYN) {
      const reset = { sequence: acknowledged, acknowledged: sequence };
      const frame = new Uint8Array(packet.SEGMENT_DATA_AT);
      return this.send(
        packet.writeTcp(frame, { ...segment, ...reset, flags: packet.RST }),
      );
    }
    // The guest asks again.
    if (this.#dials === MAX_DIALS) return;
    const connection = new TcpConnection(segment, this);
    const to = { host: this.#hostOf(address), port };
    const { rules } = this.#options;
    const rule = rules === "all" ? undefined : findRule(rules, to.host, port);
    const reason = rules !== "all" && !rule
      ? "no rule allows this host and port"
      : this.#peers.size + this.#dials >= MAX_CONNECTIONS
      ? "too many connections"
      : undefined;
    if (reason) {
      this.#report(to, reason);
      return connection.reset();
    }
    this.#connections.set(keyOf(segment), connection);
    this.#track(this.#connect(connection, to, rule));
  }

  async #connect(
    connection: TcpConnection,
    to: { host: string; port: number },
    rule: EgressRule | undefined,
  ) {
    this.#dials++;
    const dialing = this.#dial(to, rule).finally(() => this.#dials--);
    try {
      using peer = await dialing.catch((error) => {
        if (error instanceof RefusedError || this.#closing.signal.aborted) {
          throw error;
        }
        this.#report(to, `cannot connect: ${error.message}`, true);
        throw new ConnectionResetError();
      });
      this.#report(to, rule ? `rule ${rule.text}` : "--network", true);
      connection.accept();
      const isName = parseIpBits(to.host) === undefined;
      this.#peers.add(peer);
      await relay(connection, peer, rule && isName ? to : undefined)
        .finally(() => this.#peers.delete(peer));
    } catch (error) {
      connection.reset();
      if (error instanceof RefusedError) this.#report(to, error.message);
    }
  }

  async #dial(
    { host, port }: { host: string; port: number },
    rule: EgressRule | undefined,
  ): Promise<Deno.TcpConn> {
    const addresses = rule?.target ? [] : await this.#addressesOf(host, rule);
    const endpoints = rule?.target
      ? [rule.target]
      : addresses.map((hostname) => ({ hostname, port }));
    const { signal: closing } = this.#closing;
    let failure: unknown;
    for (const endpoint of endpoints.slice(0, MAX_ADDRESSES_TRIED)) {
      using limit = startDeadline(DIAL_TIMEOUT_MS, "The connection", closing);
      try {
        const peer = await Deno.connect({ ...endpoint, signal: limit.signal });
        peer.setNoDelay();
        return peer;
      } catch (error) {
        closing.throwIfAborted();
        failure = error;
      }
    }
    throw failure;
  }

  /** The addresses that the guest may reach. */
  async #addressesOf(host: string, rule: EgressRule | undefined) {
    const isAddress = parseIpBits(host) !== undefined;
    // The rule names this address.
    if (isAddress && rule) return [host];
    const all = isAddress ? [host] : await this.#resolve(host);
    return await reachableAddresses(all, { private: !rule });
  }

  async #resolve(name: string): Promise<string[]> {
    const { resolve = lookUpAddresses } = this.#options;
    // A resolver may take long, and its lookups cannot be cancelled.
    return await abortable(resolve(name), this.#closing.signal);
  }

  #hostOf(address: number): string {
    return this.#names.nameOf(address) ??
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
    this.#connections.forEach((it) => it.tick());
    for (const kind of ["allowed", "refused"] as const) {
      const more = this.#events[kind] - MAX_EVENTS_PER_TICK;
      this.#events[kind] = 0;
      if (more <= 0) continue;
      const all = { host: "*", port: null };
      this.#report(all, `${more} more`, kind === "allowed");
    }
  }

  #track(work: Promise<void>) {
    const done = work.catch(() => {}).finally(() => this.#work.delete(done));
    this.#work.add(done);
  }
}

function keyOf({ guestPort, address, port }: TcpConnection["peer"]): string {
  return `${guestPort} ${address} ${port}`;
}
