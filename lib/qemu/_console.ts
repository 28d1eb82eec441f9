/**
 * Reads what a guest writes to its serial console.
 *
 * @module
 */
import { writeAll } from "../system/streams.ts";
import { oneLine, printable } from "../system/text.ts";

/** What a console says about a guest that will not come up. */
export interface ConsoleFailure {
  /** What has happened. */
  kind: "panicked" | "not_bootable";
  /** The console's own words. */
  words: string;
}

const TAIL_LINES = 16;
const MAX_LINE = 300;
const KEPT = 64 * 1024;
const PANIC = /Kernel panic - not syncing[^\n]*/;
/** What firmware and boot loaders say when there is nothing to start. */
const NOT_BOOTABLE = /No bootable device|Missing operating system/;
/** EDK II starts its own shell then, which waits for commands. */
const UEFI_SHELL = /EFI Internal Shell[^]*^Shell> /m;

/**
 * Looks for what a console shows of a guest that has failed for good.
 *
 * @param text What the console showed.
 * @returns The failure, or `undefined` while all may be well.
 */
export function findConsoleFailure(text: string): ConsoleFailure | undefined {
  const said = plain(text);
  const [panic] = PANIC.exec(said) ?? [];
  if (panic) return { kind: "panicked", words: oneLine(panic) };
  const [words] = NOT_BOOTABLE.exec(said) ?? [];
  if (words) return { kind: "not_bootable", words };
  return UEFI_SHELL.test(said)
    ? { kind: "not_bootable", words: "UEFI has found nothing to start" }
    : undefined;
}

/**
 * The last lines of a console, fit to be shown: no escape sequences, no
 * control characters, no changes of direction, no empty or endless lines.
 *
 * @param text What the console showed.
 * @returns At most sixteen lines.
 */
export function consoleTail(text: string): string {
  return plain(text).split("\n").map((line) => line.trimEnd())
    .filter((line) => line !== "").slice(-TAIL_LINES)
    .map((line) => printable(line.slice(0, MAX_LINE))).join("\n");
}

/**
 * Connects to the serial console and reads it always: the guest would wait.
 *
 * @param path The socket.
 * @param onChunk Gets what the guest writes.
 */
export async function openConsole(
  path: string,
  onChunk?: (chunk: Uint8Array) => void,
) {
  const connection = await Deno.connect({ transport: "unix", path });
  let open = true;
  const kept = keepTail(KEPT);
  let bytes = 0;
  const close = () => {
    if (open) connection.close();
    open = false;
  };
  const closed = (async () => {
    const buffer = new Uint8Array(16 * 1024);
    while (true) {
      const count = await connection.read(buffer);
      if (count === null) return;
      const chunk = buffer.slice(0, count);
      kept.add(chunk);
      bytes += count;
      onChunk?.(chunk);
    }
  })().catch(() => {}).then(close);
  return {
    close,
    closed,
    last: kept.text,
    bytes: () => bytes,
    write: (bytes: Uint8Array) => writeAll(connection, bytes),
  };
}

/**
 * Keeps the end of a text that may be long.
 *
 * @param size How many characters.
 */
export function keepTail(size: number) {
  const decoder = new TextDecoder();
  let kept = "";
  return {
    add(chunk: Uint8Array) {
      kept = (kept + decoder.decode(chunk, { stream: true })).slice(-size);
    },
    text: () => kept,
  };
}

function plain(text: string): string {
  return text
    // deno-lint-ignore no-control-regex
    .replace(/\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-~]/g, "")
    .replace(/\r/g, "\n")
    // deno-lint-ignore no-control-regex
    .replace(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/g, "");
}
