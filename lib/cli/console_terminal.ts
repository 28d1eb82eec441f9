/** Attaches this terminal to a guest's console. */
import { formatBytes } from "./format.ts";
import type { QueuedOutput } from "./queued_output.ts";

/** More unread console output is dropped. */
const MAX_PENDING_CONSOLE_BYTES = 4 * 1024 * 1024;

/** Attaches the terminal; disposing restores its mode. */
export function attachConsole(output: QueuedOutput) {
  // The guest receives each key at once; Ctrl-C stays a signal.
  if (Deno.stdin.isTerminal()) Deno.stdin.setRaw(true, { cbreak: true });
  return {
    input: Deno.stdin.readable,
    output: createLossyConsoleWriter(output),
    [Symbol.dispose]: restoreConsole,
  };
}

/** Restores the terminal's mode if a guest's console has changed it. */
export function restoreConsole() {
  // Deno keeps the mode of a terminal that it has not set to raw mode.
  if (Deno.stdin.isTerminal()) Deno.stdin.setRaw(false);
}

/**
 * Writes console output without backpressure: a slow reader must neither block
 * the guest nor fill this process's memory. Excess output is dropped, and a line
 * reports how much.
 */
export function createLossyConsoleWriter(
  output: QueuedOutput,
): (chunk: Uint8Array) => void {
  let dropped = 0;
  const write = (data: Uint8Array | string) => void output.write(data);
  return (chunk) => {
    if (output.pendingBytes() > MAX_PENDING_CONSOLE_BYTES) {
      dropped += chunk.length;
      return;
    }
    if (dropped > 0) {
      const size = formatBytes(dropped);
      write(`\r\n[dropped ${size} of console output: slow reader]\r\n`);
    }
    dropped = 0;
    write(chunk);
  };
}
