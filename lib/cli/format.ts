/**
 * Formats sizes, durations, times and progress bars for one line, by the locale.
 */

const SIZE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
// Created on first use, as --json needs none.
let decimalFormat: Intl.NumberFormat | undefined;
let timeFormat: Intl.DateTimeFormat | undefined;

/** Formats a size, such as `64.0 MiB`. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  // 1023.95 would be rounded to 1024.0.
  while (value >= 1023.95 && unit < SIZE_UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  const count = unit === 0 ? Math.round(value) : formatDecimal(value);
  return `${count} ${SIZE_UNITS[unit]}`;
}

/** Formats milliseconds as `0.4 s`, `12 s`, `3 min 20 s` or `2 h 5 min`. */
export function formatDuration(ms: number): string {
  if (ms < 9950) return `${formatDecimal(ms / 1000)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Formats a time in this host's time zone, such as `Jan 31, 2026, 12:00 PM`. */
export function formatTime(time: string): string {
  timeFormat ??= new Intl.DateTimeFormat(undefined, {
    dateStyle: "medium",
    timeStyle: "short",
  });
  return timeFormat.format(new Date(time));
}

/** Returns the first twelve digits of a digest. */
export function shortDigest(digest: string): string {
  return digest.replace(/^(sha256:)?([0-9a-f]{12}).*/, "$1$2");
}

/**
 * Formats a progress bar of at most `columns` characters with percentage, size, rate
 * and time left. The rate leaves out resumed bytes.
 */
export function progressBar(
  progress: { bytes: number; total: number | null; resumed?: number },
  elapsedMs: number,
  columns: number,
): string {
  const { bytes, total, resumed = 0 } = progress;
  const rate = (bytes - resumed) / Math.max(elapsedMs, 1) * 1000;
  const speed = `${formatBytes(rate)}/s`;
  if (total === null || total === 0) {
    return `${formatBytes(bytes)}  ${speed}`.slice(0, columns);
  }
  const share = Math.min(bytes / total, 1);
  const percent = `${Math.floor(share * 100)}%`.padStart(4);
  const left = rate > 0
    ? formatDuration(Math.max(total - bytes, 0) / rate * 1000)
    : "?";
  const amount = `${formatBytes(bytes)} of ${formatBytes(total)}`;
  const words = `${percent}  ${amount}  ${speed}  ${left} left`;
  const room = Math.min(columns - words.length - 4, 30);
  if (room < 5) return words.slice(0, columns);
  const full = Math.round(share * room);
  return `[${"#".repeat(full)}${" ".repeat(room - full)}] ${words}`;
}

function formatDecimal(value: number): string {
  decimalFormat ??= new Intl.NumberFormat(undefined, {
    minimumFractionDigits: 1,
    maximumFractionDigits: 1,
    useGrouping: false,
  });
  return decimalFormat.format(value);
}
