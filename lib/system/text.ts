/**
 * Text from registries, guests and other users, made fit to be shown: it must
 * not steer a terminal, nor pass for a message of Toolsmith's own.
 *
 * @module
 */

/**
 * Control characters, and those that change the direction of what follows
 * (Unicode Standard Annex 9, "Explicit Directional Formatting Characters").
 */
const STEERING = /[\p{Cc}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/gu;

/**
 * Makes one line of a foreign text.
 *
 * @param text The text.
 * @param max How many characters are kept; more end in `…`.
 * @returns One line without characters that steer a terminal.
 */
export function oneLine(text: string, max = 300): string {
  // Cut first: what follows takes time in proportion to its length.
  const line = text.slice(0, 4 * max).replace(/\s+/g, " ")
    .replace(STEERING, "?").trim();
  return line.length > max || text.length > 4 * max
    ? `${line.slice(0, max)}…`
    : line;
}

/**
 * Takes out of a text what would steer a terminal.
 *
 * @param text The text; tabs and line ends stay.
 * @returns The text with `?` in place of such characters.
 */
export function printable(text: string): string {
  return text.replace(STEERING, (found) => /[\t\n]/.test(found) ? found : "?");
}

/**
 * Writes JSON that steers no terminal: what would is escaped, and so means the
 * same.
 *
 * @param value What to write.
 * @returns One line.
 */
export function jsonLine(value: unknown): string {
  return JSON.stringify(value).replace(
    STEERING,
    (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
