/**
 * One TCP connection of the guest (RFC 9293, with the window scaling of RFC 7323). Between
 * guest and host nothing changes its order, so only what comes in order is accepted. What
 * is dropped for lack of memory, the guest sends again.
 */
import * as packet from "./_packet.ts";
import { ACK, FIN, RST, SEGMENT_DATA_AT, SYN } from "./_packet.ts";

/** What the connections of a guest share. */
export interface TcpLink {
  /** Queues a frame to the guest. */
  send(frame: Uint8Array): void;
  /** Bytes that all connections hold. */
  heldBytes: number;
}

/** A connection holds up to 1 MiB each way. */
const MAX_HELD_BYTES = 1 << 20;
/** Above this, a connection holds one segment each way. */
const MAX_ALL_HELD_BYTES = 16 << 20;
/** What a segment costs besides its data. */
const SEGMENT_COST = 256;
const WINDOW_SHIFT = 5;
const MIN_SEGMENT_BYTES = 64;
const MAX_SEGMENT_BYTES = packet.MTU - 40;
const MIN_READ_BYTES = 4096;
/** Doubled with each retransmission. */
const FIRST_RETRANSMISSION_TICKS = 4;
const MAX_RETRANSMISSIONS = 7;
/** Each acknowledgment interrupts the guest, which costs it as much as sending. */
const ACKNOWLEDGMENT_DELAY_MS = 2;
/** Half of the window, so that the guest need not wait. */
const MAX_UNACKNOWLEDGED_BYTES = MAX_HELD_BYTES / 2;

export class TcpConnection {
  isClosed = false;
  /** Called when the connection ends early: the host may be waiting for its peer. */
  onReset?: () => void;
  readonly #ends: packet.Ends;
  readonly #link: TcpLink;
  #changed = Promise.withResolvers<void>();
  /** What this connection's segments cost, in bytes. */
  readonly #held = { received: 0, sent: 0 };

  /** The guest's next sequence number. */
  #expected: number;
  #received: Uint8Array[] = [];
  #guestEnded = false;
  /** The window that the guest knows. */
  #offered = 0;
  /** What the guest knows to have arrived. */
  #confirmed = 0;
  #acknowledgmentTimer: ReturnType<typeof setTimeout> | undefined;

  #sequence = crypto.getRandomValues(new Uint32Array(1))[0];
  #acknowledged = this.#sequence;
  #unacknowledged: { frame: Uint8Array; end: number }[] = [];
  #hostEnded = false;
  #window: number;
  #guestShift: number | undefined;
  #maxSegment = 536;
  #readBytes = MIN_READ_BYTES;
  #ticks = 0;
  #retransmissions = 0;

  /** Accepts the connection that the guest has asked for. */
  constructor(syn: packet.TcpSegment, link: TcpLink) {
    const { address, port, guestPort, options } = syn;
    this.#ends = { address, port, guestPort };
    this.#link = link;
    this.#expected = syn.sequence + 1 >>> 0;
    this.#window = syn.window;
    for (let at = 0; at < options.length && options[at] !== 0;) {
      const [kind, length, first, second] = options.subarray(at);
      if (kind !== 1 && !(length >= 2)) break;
      if (kind === 2 && length === 4) this.#maxSegment = first << 8 | second;
      if (kind === 3 && length === 3) this.#guestShift = Math.min(first, 14);
      at += kind === 1 ? 1 : length;
    }
    const maxSegment = Math.max(this.#maxSegment, MIN_SEGMENT_BYTES);
    this.#maxSegment = Math.min(maxSegment, MAX_SEGMENT_BYTES);
    const scale = this.#guestShift === undefined ? [] : [1, 3, 3, WINDOW_SHIFT];
    const [high, low] = [MAX_SEGMENT_BYTES >> 8, MAX_SEGMENT_BYTES & 255];
    const ownOptions = [2, 4, high, low, ...scale];
    const frame = new Uint8Array(SEGMENT_DATA_AT + ownOptions.length);
    frame.set(ownOptions, SEGMENT_DATA_AT);
    this.#transmit(frame, SYN | ACK);
  }

  /** Ends the connection at once. */
  reset(): void {
    if (!this.isClosed) this.#sendEmpty(RST | ACK);
    this.#close();
  }

  receive(segment: packet.TcpSegment): void {
    const { flags } = segment;
    if (flags & RST) return this.#close();
    // Repeated, or for a new connection where the guest has forgotten this one.
    if (flags & SYN) return this.#sendEmpty(ACK);
    if (flags & ACK) this.#receiveAcknowledgment(segment);
    const hasData = segment.data.length > 0 || (flags & FIN) !== 0;
    // Without data, the guest probes the connection or a closed window.
    const isUnexpected = segment.sequence !== this.#expected;
    if (hasData) this.#receiveData(segment);
    if (hasData || isUnexpected) this.#acknowledgeSoon();
    const haveEnded = this.#hostEnded && this.#guestEnded;
    if (haveEnded && this.#unacknowledged.length === 0) {
      this.#sendEmpty(ACK);
      this.isClosed = true;
    }
  }

  /**
   * The next bytes of the guest; `undefined` at their end.
   *
   * @throws {Deno.errors.ConnectionReset}
   */
  async read(): Promise<Uint8Array | undefined> {
    while (this.#received.length === 0) {
      if (this.#guestEnded) return undefined;
      await this.#change();
    }
    const data = this.#received.shift()!;
    this.#hold("received", -data.length - SEGMENT_COST);
    // The guest waits if the window that it knows is full.
    const isWindowSmall = this.#offered < MAX_HELD_BYTES / 4;
    const hasRoom = this.#held.received < MAX_HELD_BYTES / 2;
    if (isWindowSmall && hasRoom && !this.isClosed) this.#sendEmpty(ACK);
    return data;
  }

  /**
   * Sends the guest what one read returns, once the guest has room.
   *
   * @param read Returns the number of bytes, or `null` at the end.
   * @returns Whether there may be more.
   * @throws {Deno.errors.ConnectionReset}
   */
  async sendFrom(
    read: (into: Uint8Array) => Promise<number | null>,
  ): Promise<boolean> {
    const room = await this.#roomForSegment();
    const size = Math.min(room, this.#maxSegment, this.#readBytes);
    const frame = new Uint8Array(SEGMENT_DATA_AT + size);
    const count = await read(frame.subarray(SEGMENT_DATA_AT));
    if (this.isClosed) throw new Deno.errors.ConnectionReset();
    if (count === null) this.#hostEnded = true;
    const used = frame.subarray(0, SEGMENT_DATA_AT + (count ?? 0));
    // Small segments must not keep large buffers.
    const whole = used.length < frame.length / 2 ? used.slice() : used;
    this.#transmit(whole, count === null ? ACK | FIN : ACK);
    this.#readBytes = Math.max(
      MIN_READ_BYTES,
      Math.min(2 * (count ?? 0), packet.MTU),
    );
    return count !== null;
  }

  /** Called at regular intervals: retransmits, and probes a closed window. */
  tick(): void {
    const wait = FIRST_RETRANSMISSION_TICKS << this.#retransmissions;
    if (++this.#ticks < wait) return;
    this.#ticks = 0;
    if (this.#unacknowledged.length > 0) {
      if (this.#retransmissions++ === MAX_RETRANSMISSIONS) return this.reset();
      this.#link.send(this.#unacknowledged[0].frame);
    } else if (this.#window === 0) {
      // The guest answers a sequence number that it has seen with its window.
      this.#sendEmpty(ACK, this.#sequence - 1 >>> 0);
    }
  }

  #receiveAcknowledgment({ acknowledged, window }: packet.TcpSegment) {
    const gained = acknowledged - this.#acknowledged | 0;
    if (gained < 0 || (acknowledged - this.#sequence | 0) > 0) return;
    this.#window = window << (this.#guestShift ?? 0);
    this.#acknowledged = acknowledged;
    let [oldest] = this.#unacknowledged;
    while (oldest && (oldest.end - acknowledged | 0) <= 0) {
      this.#unacknowledged.shift();
      this.#hold("sent", -oldest.frame.buffer.byteLength - SEGMENT_COST);
      [oldest] = this.#unacknowledged;
    }
    if (gained > 0) {
      // What followed a lost segment may be lost, too.
      if (this.#retransmissions > 0 && oldest) this.#link.send(oldest.frame);
      this.#ticks = this.#retransmissions = 0;
    }
    this.#notify();
  }

  #receiveData({ sequence, data, flags }: packet.TcpSegment) {
    const known = this.#expected - sequence | 0;
    if (this.#guestEnded || known < 0 || known > data.length) return;
    // Copied, as the guest's next frame takes its place.
    const fresh = data.slice(known);
    // The guest does not count what its segments cost.
    const isTooMuch = this.#held.received > 1.5 * MAX_HELD_BYTES ||
      this.#link.heldBytes > MAX_ALL_HELD_BYTES && this.#held.received > 0;
    if (fresh.length > 0) {
      if (isTooMuch) return;
      this.#received.push(fresh);
      this.#hold("received", fresh.length + SEGMENT_COST);
    }
    this.#guestEnded = (flags & FIN) !== 0;
    this.#expected = this.#expected + fresh.length + (flags & FIN) >>> 0;
    this.#notify();
  }

  /** Acknowledges what has arrived; at once if it is much, or with the next segment. */
  #acknowledgeSoon() {
    const unacknowledged = this.#expected - this.#confirmed >>> 0;
    if (unacknowledged > MAX_UNACKNOWLEDGED_BYTES) return this.#sendEmpty(ACK);
    this.#acknowledgmentTimer ??= setTimeout(
      () => this.#sendEmpty(ACK),
      ACKNOWLEDGMENT_DELAY_MS,
    );
  }

  async #roomForSegment(): Promise<number> {
    while (true) {
      const onTheWay = this.#sequence - this.#acknowledged >>> 0;
      const room = Math.min(this.#window, MAX_HELD_BYTES) - onTheWay;
      // Filling the last bytes of a window with small segments is slow.
      const isSmall = room < Math.min(this.#maxSegment, 16384);
      const isHeld = this.#held.sent > MAX_HELD_BYTES ||
        this.#link.heldBytes > MAX_ALL_HELD_BYTES;
      const isIdle = this.#unacknowledged.length === 0;
      if (isIdle ? room > 0 : !isSmall && !isHeld) return room;
      await this.#change();
    }
  }

  /** Sends a segment that the guest has to acknowledge. */
  #transmit(frame: Uint8Array, flags: number) {
    this.#write(frame, flags);
    const length = flags & (SYN | FIN) ? 1 : frame.length - SEGMENT_DATA_AT;
    this.#sequence = this.#sequence + length >>> 0;
    if (this.#unacknowledged.length === 0) this.#ticks = 0;
    this.#unacknowledged.push({ frame, end: this.#sequence });
    this.#hold("sent", frame.buffer.byteLength + SEGMENT_COST);
    this.#link.send(frame);
  }

  #sendEmpty(flags: number, sequence?: number) {
    const frame = new Uint8Array(SEGMENT_DATA_AT);
    this.#link.send(this.#write(frame, flags, sequence));
  }

  #write(frame: Uint8Array, flags: number, sequence = this.#sequence) {
    clearTimeout(this.#acknowledgmentTimer);
    this.#acknowledgmentTimer = undefined;
    this.#confirmed = this.#expected;
    this.#offered = Math.max(0, MAX_HELD_BYTES - this.#held.received);
    const isScaled = this.#guestShift !== undefined && !(flags & SYN);
    const window = this.#offered >> (isScaled ? WINDOW_SHIFT : 0);
    return packet.writeTcp(frame, {
      ...this.#ends,
      ...{ sequence, flags, acknowledged: this.#expected },
      window: Math.min(window, 0xffff),
    });
  }

  #hold(what: "received" | "sent", bytes: number) {
    this.#held[what] += bytes;
    this.#link.heldBytes += bytes;
  }

  #close() {
    this.isClosed = true;
    clearTimeout(this.#acknowledgmentTimer);
    this.#hold("received", -this.#held.received);
    this.#hold("sent", -this.#held.sent);
    this.#received = [];
    this.#unacknowledged = [];
    this.onReset?.();
    this.#notify();
  }

  async #change() {
    if (this.isClosed) throw new Deno.errors.ConnectionReset();
    await this.#changed.promise;
  }

  #notify() {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}
