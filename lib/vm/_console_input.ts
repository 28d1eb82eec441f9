/**
 * Forwards console input to QEMU.
 *
 * @module
 */
import type { QemuProcess } from "../qemu/qemu_process.ts";

/** Forwards a stream to the guest's serial console until QEMU ends. */
export class ConsoleInput {
  #reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
  #forwarding: Promise<void> | undefined;
  #hasForwarded = false;

  constructor(
    private readonly input: ReadableStream<Uint8Array> | undefined,
    private readonly qemu: QemuProcess,
  ) {
    this.resume();
  }

  /** Was any input forwarded? */
  hasForwardedInput(): boolean {
    return this.#hasForwarded;
  }

  /** Stops forwarding and leaves further input to another reader. */
  async pause(): Promise<void> {
    this.#reader?.releaseLock();
    this.#reader = undefined;
    await this.#forwarding;
  }

  /** Forwards input again after a pause. */
  resume(): void {
    if (this.#reader || !this.input) return;
    this.#reader = this.input.getReader();
    this.#forwarding = this.#forward(this.#reader).catch(() => {});
  }

  /** Stops forwarding and cancels the stream. */
  async cancel(): Promise<void> {
    await this.#reader?.cancel().catch(() => {});
    await this.pause();
  }

  async #forward(reader: ReadableStreamDefaultReader<Uint8Array>) {
    while (true) {
      const { value } = await reader.read();
      if (value === undefined) return;
      this.#hasForwarded = true;
      await this.qemu.writeToConsole(value);
    }
  }
}
