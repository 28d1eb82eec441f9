/**
 * Reads what a guest writes to its serial console.
 *
 * @module
 */

/** What a console says about a guest that will not come up. */
export type ConsoleVerdict = "panicked" | "not_bootable";

const TAIL_LINES = 12;

/** What firmware and boot loaders say when there is nothing to start. */
const NOT_BOOTABLE = [
  "No bootable device",
  "Boot failed: not a bootable disk",
  "Missing operating system",
  "Operating System not found",
];

/**
 * Tells from the console whether the guest has failed for good.
 *
 * @param text What the console showed.
 * @returns The verdict, or `undefined` while all may be well.
 */
export function consoleVerdict(text: string): ConsoleVerdict | undefined {
  if (text.includes("Kernel panic - not syncing")) return "panicked";
  const said = plain(text);
  return NOT_BOOTABLE.some((words) => said.includes(words))
    ? "not_bootable"
    : undefined;
}

/**
 * The last lines of a console, fit to be shown: no escape sequences, no
 * control characters, no empty lines.
 *
 * @param text What the console showed.
 * @returns At most twelve lines.
 */
export function consoleTail(text: string): string {
  return plain(text).split("\n").map((line) => line.trimEnd())
    .filter((line) => line !== "").slice(-TAIL_LINES).join("\n");
}

function plain(text: string): string {
  return text
    // deno-lint-ignore no-control-regex
    .replace(/\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]/g, "")
    .replace(/\r/g, "\n")
    // deno-lint-ignore no-control-regex
    .replace(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/g, "");
}
