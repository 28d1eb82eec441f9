/**
 * Reads what a guest writes to its serial console.
 *
 * @module
 */

/** What a console says about a guest that will not come up. */
export interface ConsoleFailure {
  /** What has happened. */
  kind: "panicked" | "not_bootable";
  /** The console's own words. */
  words: string;
}

const TAIL_LINES = 16;
const PANIC = /Kernel panic - not syncing[^\n]*/;
/** What firmware and boot loaders say when there is nothing to start. */
const NOT_BOOTABLE = /No bootable device|Missing operating system/;

/**
 * Tells from the console whether the guest has failed for good.
 *
 * @param text What the console showed.
 * @returns The verdict, or `undefined` while all may be well.
 */
export function findConsoleFailure(text: string): ConsoleFailure | undefined {
  const said = plain(text);
  const [panic] = PANIC.exec(said) ?? [];
  if (panic) return { kind: "panicked", words: panic };
  const [words] = NOT_BOOTABLE.exec(said) ?? [];
  return words ? { kind: "not_bootable", words } : undefined;
}

/**
 * The last lines of a console, fit to be shown: no escape sequences, no
 * control characters, no empty lines.
 *
 * @param text What the console showed.
 * @returns At most sixteen lines.
 */
export function consoleTail(text: string): string {
  return plain(text).split("\n").map((line) => line.trimEnd())
    .filter((line) => line !== "").slice(-TAIL_LINES).join("\n");
}

function plain(text: string): string {
  return text
    // deno-lint-ignore no-control-regex
    .replace(/\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-~]/g, "")
    .replace(/\r/g, "\n")
    // deno-lint-ignore no-control-regex
    .replace(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/g, "");
}
