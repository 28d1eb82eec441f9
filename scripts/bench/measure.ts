/**
 * Runs rivals in turns, and keeps what was measured.
 *
 * @module
 */

/** A way to do something. */
export interface Rival {
  /** What it is called. */
  name: string;
  /** Does it once; returns what is measured, where that is not the time. */
  once: () => Promise<number | void>;
  /** Prepares for it; takes no part in the time. */
  before?: () => Promise<void>;
}

/** What was measured of one way. */
export interface Row {
  /** What it is called. */
  name: string;
  /** Its values. */
  values: number[];
}

/** Ways that were compared. */
export interface Section {
  title: string;
  unit: Unit;
  rows: Row[];
  /** What else was found. @default {undefined} */
  note?: string;
}

/** What values are. */
export type Unit = "ms" | "× the image" | "MiB" | "MiB/s";

/** Everything that was measured so far. */
export const sections: Section[] = [];

let rounds = 5;

/** Sets how often each rival is tried and counted. */
export function setRounds(count: number) {
  rounds = count;
}

/** Runs rivals in turns; the first round fills what the system caches. */
export async function compare(
  title: string,
  rivals: Rival[],
  unit: Unit = "ms",
  noteOf?: (rows: Row[]) => string,
) {
  const rows: Row[] = rivals.map(({ name }) => ({ name, values: [] }));
  for (let round = 0; round <= rounds; round++) {
    for (const [at, { before, once }] of rivals.entries()) {
      await before?.();
      const begun = performance.now();
      const value = await once() ?? performance.now() - begun;
      if (round > 0) rows[at].values.push(value);
    }
  }
  record(title, rows, unit, noteOf?.(rows));
}

/** Keeps values, and prints their medians and the ratios to the first. */
export function record(
  title: string,
  rows: Row[],
  unit: Unit = "ms",
  note?: string,
) {
  sections.push({ title, unit, rows, note });
  const first = median(rows[0].values);
  console.log(`\n${title}`);
  for (const { name, values } of rows) {
    const spread = `(${valueText(Math.min(...values), unit)}–${
      valueText(Math.max(...values), unit)
    })`;
    console.log(
      [
        `  ${name.padEnd(40)}`,
        `${valueText(median(values), unit).padStart(7)} ${unit}`,
        spread.padEnd(16),
        `${values.length} runs`,
        `${(median(values) / first).toFixed(2)} ×`,
      ].join("  "),
    );
  }
  if (note) console.log(`  ${note}`);
}

/** Writes a value without its unit. */
export function valueText(value: number, unit: Unit): string {
  return value.toFixed(unit === "× the image" ? 3 : 0);
}

/** The value in the middle; of an even count, the mean of the two that are. */
export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length / 2;
  return (sorted[Math.ceil(half) - 1] + sorted[Math.floor(half)]) / 2;
}
