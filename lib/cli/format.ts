/**
 * Sizes, times and bars in words that fit a line, as the locale has them.
 *
 * @module
 */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
// Made when the first one is written: --json needs none.
let decimals: Intl.NumberFormat | undefined;
let times: Intl.DateTimeFormat | undefined;

/**
 * Writes a size.
 *
 * @param bytes The size, in bytes.
 * @returns Such as `64.0 MiB`.
 */
export function bytesText(bytes: number): string {
  let value = bytes;
  let unit = 0;
  // 1023.95 would be rounded to 1024.0.
  while (value >= 1023.95 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? Math.round(value) : decimal(value)} ${UNITS[unit]}`;
}

/**
 * Writes a time.
 *
 * @param ms The time, in milliseconds.
 * @returns Such as `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
 */
export function secondsText(ms: number): string {
  if (ms < 9950) return `${decimal(ms / 1000)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/**
 * Writes a point in time, in the time zone of this host.
 *
 * @param time The time, in ISO 8601.
 * @returns Such as `Jan 31, 2026, 12:00 PM`.
 */
export function timeText(time: string): string {
  times ??= new Intl.DateTimeFormat(undefined, {
    dateStyle: "medium",
    timeStyle: "short",
  });
  return times.format(new Date(time));
}

/**
 * Shortens a digest for a line; the whole one is in the JSON.
 *
 * @param digest `sha256:` and hex.
 * @returns Its first twelve digits.
 */
export function shortDigest(digest: string): string {
  return digest.replace(/^(sha256:)?([0-9a-f]{12}).*/, "$1$2");
}

/**
 * Draws a progress bar with size, rate and time left.
 *
 * @param progress Bytes by now, and in all if that is known; those that were
 * there at the start do not count for the rate.
 * @param elapsedMs Time since the start, in milliseconds.
 * @param columns Width of the line, in characters.
 * @returns The line, no longer than the width.
 */
export function progressBar(
  progress: { bytes: number; total: number | null; resumed?: number },
  elapsedMs: number,
  columns: number,
): string {
  const { bytes, total, resumed = 0 } = progress;
  const rate = (bytes - resumed) / Math.max(elapsedMs, 1) * 1000;
  const speed = `${bytesText(rate)}/s`;
  if (total === null || total === 0) {
    return `${bytesText(bytes)}  ${speed}`.slice(0, columns);
  }
  const share = Math.min(bytes / total, 1);
  const percent = `${Math.floor(share * 100)}%`.padStart(4);
  const left = rate > 0
    ? secondsText(Math.max(total - bytes, 0) / rate * 1000)
    : "?";
  const words = `${percent}  ${bytesText(bytes)} of ${
    bytesText(total)
  }  ${speed}  ${left} left`;
  const room = Math.min(columns - words.length - 4, 30);
  if (room < 5) return words.slice(0, columns);
  const full = Math.round(share * room);
  return `[${"#".repeat(full)}${" ".repeat(room - full)}] ${words}`;
}

function decimal(value: number): string {
  decimals ??= new Intl.NumberFormat(undefined, {
    minimumFractionDigits: 1,
    maximumFractionDigits: 1,
    useGrouping: false,
  });
  return decimals.format(value);
}
