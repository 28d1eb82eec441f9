/**
 * The frames between QEMU and this process. Format: QEMU's `-netdev stream`, each frame
 * after its length, 4 bytes in big-endian order.
 *
 * @module
 */
import { writeAll } from "../system/write_all.ts";
import { numbersOf } from "./_packet.ts";
import { closeQuietly } from "./_relay.ts";

/** Larger frames than QEMU's are an error. */
const MAX_FRAME_BYTES = 69_632;
const BUFFER_BYTES = 1 << 18;
const MAX_QUEUED_BYTES = 32 << 20;
/** What a queued frame costs besides its bytes. */
const FRAME_COST = 256;

/** Who receives the frames. */
export interface FrameReceiver {
  /** Takes a frame, whose memory is used again. */
  receive(frame: Uint8Array): void;
  /** Called when all frames that have arrived were taken. */
  received(): void;
}

/** Listens for one QEMU. */
export class FrameLink {
  readonly #listener: Deno.UnixListener;
  #link: Deno.Conn | undefined;
  #queue: Uint8Array[] = [];
  #queuedBytes = 0;
  #queueFilled = Promise.withResolvers<void>();
  #isClosed = false;

  /** @param path Path of the socket that QEMU connects to. */
  constructor(path: string) {
    this.#listener = Deno.listen({ transport: "unix", path });
  }

  /** Reads and writes frames until QEMU or this link ends. */
  async serve(receiver: FrameReceiver): Promise<void> {
    try {
      this.#link = await this.#listener.accept();
      // Nobody else may be the guest.
      this.#listener.close();
      const reading = this.#readFrames(receiver).finally(() => this.close());
      await Promise.all([reading, this.#writeFrames()]);
    } catch {
      // QEMU has ended, or this link.
    }
    this.close();
  }

  close() {
    this.#isClosed = true;
    closeQuietly(this.#listener);
    closeQuietly(this.#link);
    this.#queueFilled.resolve();
  }

  async #readFrames(receiver: FrameReceiver) {
    const buffer = new Uint8Array(BUFFER_BYTES);
    const numbers = numbersOf(buffer);
    let held = 0;
    while (true) {
      const count = await this.#link!.read(buffer.subarray(held));
      if (count === null) return;
      held += count;
      let at = 0;
      while (held - at >= 4) {
        const length = numbers.getUint32(at);
        if (length > MAX_FRAME_BYTES) return;
        const end = at + 4 + length;
        if (end > held) break;
        receiver.receive(buffer.subarray(at + 4, end));
        at = end;
      }
      buffer.copyWithin(0, at, held);
      held -= at;
      receiver.received();
    }
  }

  async #writeFrames() {
    const buffer = new Uint8Array(BUFFER_BYTES);
    while (!this.#isClosed) {
      let [length, count] = [0, 0];
      for (const frame of this.#queue) {
        if (length + frame.length > buffer.length) break;
        buffer.set(frame, length);
        length += frame.length;
        count++;
      }
      // At once, as each removal takes time in proportion to what is left.
      this.#queue.splice(0, count);
      this.#queuedBytes -= length + count * FRAME_COST;
      if (length > 0) await writeAll(this.#link!, buffer.subarray(0, length));
      else await this.#queueFilled.promise;
    }
  }

  send(frame: Uint8Array) {
    // A guest that does not read loses frames, and asks again.
    if (this.#queuedBytes > MAX_QUEUED_BYTES) return;
    this.#queue.push(frame);
    this.#queuedBytes += frame.length + FRAME_COST;
    this.#queueFilled.resolve();
    this.#queueFilled = Promise.withResolvers();
  }
}
