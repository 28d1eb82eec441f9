/**
 * This terminal, for the console of a guest.
 *
 * @module
 */
import { bytesText } from "./format.ts";
import type { Output } from "./output.ts";

/** A terminal that a guest's console is on; disposing it gives it back. */
export interface Terminal extends Disposable {
  /** What is typed. */
  input: ReadableStream<Uint8Array>;
  /** Shows what the guest writes. */
  output: (chunk: Uint8Array) => void;
}

/** What of a console is kept for who reads slowly. */
const MAX_WAITING = 4 * 1024 * 1024;

/**
 * The terminal of this process.
 *
 * @returns What takes it for a guest, and what gives it back as it was.
 */
export function guestTerminal(): {
  take(output: Output): Terminal;
  restore(): void;
} {
  let raw = false;
  const restore = () => {
    if (raw) Deno.stdin.setRaw(false);
    raw = false;
  };
  return {
    restore,
    take(output) {
      raw = Deno.stdin.isTerminal();
      // Keys go to the guest as they are typed; Ctrl-C stays a signal.
      if (raw) Deno.stdin.setRaw(true, { cbreak: true });
      return {
        input: Deno.stdin.readable,
        output: consoleOutput(output),
        [Symbol.dispose]: restore,
      };
    },
  };
}

/**
 * Takes what a guest writes to its console. A guest must neither wait for who
 * reads slowly nor fill this process's memory: what is too much is dropped, and
 * a line says so.
 */
export function consoleOutput(output: Output): (chunk: Uint8Array) => void {
  let dropped = 0;
  const write = (data: Uint8Array | string) => void output.write(data);
  return (chunk) => {
    if (output.waiting() > MAX_WAITING) {
      dropped += chunk.length;
      return;
    }
    if (dropped > 0) {
      write(
        `\r\n[${bytesText(dropped)} of the console were not read in time]\r\n`,
      );
    }
    dropped = 0;
    write(chunk);
  };
}
