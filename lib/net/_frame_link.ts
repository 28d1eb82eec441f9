/**
 * The frames between QEMU and this process. Format: QEMU's `-netdev stream`, each frame
 * after its length, 4 bytes in big-endian order.
 */
import { writeAll } from "../system/write_all.ts";
import { numbersOf } from "./_packet.ts";

/** Larger frames than QEMU's are an error. */
const MAX_FRAME_BYTES = 69_632;
const BUFFER_BYTES = 1 << 18;
const MAX_QUEUED_BYTES = 32 << 20;
/** What a queued frame costs besides its bytes. */
const FRAME_COST = 256;

/** Listens for one QEMU. */
export class FrameLink {
  readonly #listener: Deno.UnixListener;
  readonly #accepting: Promise<Deno.Conn>;
  readonly #buffer = new Uint8Array(BUFFER_BYTES);
  #queue: Uint8Array[] = [];
  #queuedBytes = 0;
  #writing: Promise<void> | undefined;

  /** @param path Path of the socket that QEMU connects to. */
  constructor(path: string) {
    this.#listener = Deno.listen({ transport: "unix", path });
    this.#accepting = this.#listener.accept();
  }

  /**
   * Reads frames until QEMU or this link ends.
   *
   * @param receive Takes a frame, whose memory is used again.
   */
  async serve(receive: (frame: Uint8Array) => void): Promise<void> {
    const buffer = new Uint8Array(BUFFER_BYTES);
    const numbers = numbersOf(buffer);
    try {
      using link = await this.#accepting;
      // Nobody else may be the guest.
      this.#listener.close();
      let held = 0;
      for (let count; (count = await link.read(buffer.subarray(held)));) {
        held += count;
        let at = 0;
        while (held - at >= 4) {
          const length = numbers.getUint32(at);
          if (length > MAX_FRAME_BYTES) return;
          const end = at + 4 + length;
          if (end > held) break;
          receive(buffer.subarray(at + 4, end));
          at = end;
        }
        buffer.copyWithin(0, at, held);
        held -= at;
      }
    } catch {
      // QEMU has ended, or this link.
    } finally {
      await this.#writing;
    }
  }

  close() {
    this.#listener[Symbol.dispose]();
    this.#accepting.then((link) => link[Symbol.dispose](), () => {});
  }

  send(frame: Uint8Array) {
    // A guest that does not read loses frames, and asks again.
    if (this.#queuedBytes > MAX_QUEUED_BYTES) return;
    this.#queue.push(frame);
    this.#queuedBytes += frame.length + FRAME_COST;
    this.#writing ??= this.#writeQueue().catch(() => this.close());
  }

  async #writeQueue() {
    const link = await this.#accepting;
    while (this.#queue.length > 0) {
      let [length, count] = [0, 0];
      for (const frame of this.#queue) {
        if (length + frame.length > BUFFER_BYTES) break;
        this.#buffer.set(frame, length);
        length += frame.length;
        count++;
      }
      // At once, as each removal takes time in proportion to what is left.
      this.#queue.splice(0, count);
      this.#queuedBytes -= length + count * FRAME_COST;
      await writeAll(link, this.#buffer.subarray(0, length));
    }
    this.#writing = undefined;
  }
}
