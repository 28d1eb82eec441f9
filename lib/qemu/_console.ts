/**
 * The guest's serial console: its connection, its last lines, and the failures
 * that can be detected in them.
 */
import { ToolsmithError } from "../errors.ts";
import { writeAll } from "../system/write_all.ts";
import { sanitizeLine, sanitizeText } from "../system/sanitize_text.ts";
import { connectToVmSocket } from "./errors.ts";

const PRINTED_TAIL_LINES = 16;
const MAX_TAIL_LINE_CHARS = 300;
const CONSOLE_TAIL_CHARS = 64 * 1024;
/** A whole line, as the console may be read in the middle of one. */
const KERNEL_PANIC_PATTERN = /Kernel panic - not syncing[^\n]*(?=\n)/;
/** Printed by firmware and boot loaders that find nothing to boot. */
const NOT_BOOTABLE_PATTERN = /No bootable device|Missing operating system/;
/** EDK II falls back to its own shell, if it has one and starts it, which then waits. */
const NO_UEFI_BOOT_PATTERN =
  /No bootable option or device was found|EFI Internal Shell[^]*^Shell> /m;

/** Returns the error that the guest or its firmware printed instead of booting. */
export function findConsoleFailure(text: string): ToolsmithError | undefined {
  const output = stripControlCharacters(text);
  const [panic] = KERNEL_PANIC_PATTERN.exec(output) ?? [];
  if (panic) {
    const message = `The guest's kernel panicked: ${sanitizeLine(panic)}`;
    return new ToolsmithError("guest_panicked", message);
  }
  const [printed] = NOT_BOOTABLE_PATTERN.exec(output) ?? [];
  if (!printed && !NO_UEFI_BOOT_PATTERN.test(output)) return undefined;
  const why = printed ?? "UEFI firmware found nothing to boot";
  const message = `The image does not boot: ${why}`;
  const hint =
    "check that the image has a boot loader; choose its firmware with --firmware and its processor with --arch (see docs/running.md)";
  return new ToolsmithError("boot_failed", message, { hint });
}

/**
 * The last lines of the console, safe to print: without escape sequences, control
 * and bidirectional characters, empty lines and overlong lines.
 */
export function printableConsoleTail(text: string): string {
  return stripControlCharacters(text).split("\n").map((line) => line.trimEnd())
    .filter((line) => line !== "").slice(-PRINTED_TAIL_LINES)
    .map((line) => sanitizeText(line.slice(0, MAX_TAIL_LINE_CHARS))).join("\n");
}

/** Connects to the serial console and drains it, as a full socket blocks the guest. */
export async function connectToConsole(
  path: string,
  onChunk?: (chunk: Uint8Array) => void,
) {
  const connection = await connectToVmSocket(path);
  const tail = textTailBuffer(CONSOLE_TAIL_CHARS);
  let bytes = 0;
  const drain = async () => {
    const buffer = new Uint8Array(16 * 1024);
    while (true) {
      const count = await connection.read(buffer);
      if (count === null) return;
      const chunk = buffer.slice(0, count);
      tail.add(chunk);
      bytes += count;
      onChunk?.(chunk);
    }
  };
  const close = () => connection[Symbol.dispose]();
  return {
    close,
    closed: drain().then(close, close),
    last: tail.text,
    bytes: () => bytes,
    write: (bytes: Uint8Array) => writeAll(connection, bytes),
  };
}

/** Decodes chunks of UTF-8 and keeps the last `size` characters. */
export function textTailBuffer(size: number) {
  const decoder = new TextDecoder();
  let kept = "";
  return {
    add(chunk: Uint8Array) {
      kept = (kept + decoder.decode(chunk, { stream: true })).slice(-size);
    },
    text: () => kept,
  };
}

function stripControlCharacters(text: string): string {
  return text
    // deno-lint-ignore no-control-regex
    .replace(/\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-~]/g, "")
    .replace(/\r/g, "\n")
    // deno-lint-ignore no-control-regex
    .replace(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/g, "");
}
