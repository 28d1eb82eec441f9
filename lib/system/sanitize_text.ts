/**
 * Sanitizes text from registries, guests and other users for display: it must not
 * control the terminal or imitate a message of Toolsmith.
 */

/**
 * Control characters, and those that change the text direction (Unicode Standard
 * Annex 9, "Explicit Directional Formatting Characters").
 */
const UNSAFE_CHARACTER_PATTERN =
  /[\p{Cc}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/gu;

/**
 * Converts untrusted text to one line without control characters. Text longer than
 * `max` is truncated and ends in `…`.
 */
export function sanitizeLine(text: string, max = 300): string {
  // Truncated first, to bound the time of the replacements.
  const line = text.slice(0, 4 * max).replace(/\s+/g, " ")
    .replace(UNSAFE_CHARACTER_PATTERN, "?").trim();
  return line.length > max || text.length > 4 * max
    ? `${line.slice(0, max)}…`
    : line;
}

/**
 * Replaces control characters in untrusted text by `?`, except tabs and line ends.
 */
export function sanitizeText(text: string): string {
  return text.replace(
    UNSAFE_CHARACTER_PATTERN,
    (found) => /[\t\n]/.test(found) ? found : "?",
  );
}

/**
 * Formats JSON with control characters escaped, so that it is safe in a terminal.
 */
export function terminalSafeJson(value: unknown): string {
  return JSON.stringify(value).replace(
    UNSAFE_CHARACTER_PATTERN,
    (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
