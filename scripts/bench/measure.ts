/** Runs contenders in turns and collects the results. */

/** One way to do the measured work. */
export interface Contender {
  name: string;
  /** Runs once; may return a value to record instead of the time. */
  runOnce: () => Promise<number | void>;
  /** Runs before each measurement, not timed. */
  prepare?: () => Promise<void>;
}

export interface MeasuredValues {
  name: string;
  values: number[];
}

/** A table of the report. */
export interface ReportSection {
  title: string;
  unit: MeasuredUnit;
  rows: MeasuredValues[];
  note?: string;
}

export type MeasuredUnit = "ms" | "× the image" | "MiB" | "MiB/s";

export const reportSections: ReportSection[] = [];

let roundsPerContender = 5;

/** Sets the number of rounds per contender. */
export function setRounds(count: number) {
  roundsPerContender = count;
}

/** Runs contenders in turns; the first round warms the caches and is not counted. */
export async function measureInTurns(
  title: string,
  contenders: Contender[],
  unit: MeasuredUnit = "ms",
  noteOf?: (rows: MeasuredValues[]) => string,
) {
  const rows: MeasuredValues[] = contenders.map(({ name }) => ({
    name,
    values: [],
  }));
  for (let round = 0; round <= roundsPerContender; round++) {
    for (const [at, { prepare, runOnce }] of contenders.entries()) {
      await prepare?.();
      const startedAt = performance.now();
      const value = await runOnce() ?? performance.now() - startedAt;
      if (round > 0) rows[at].values.push(value);
    }
  }
  addReportSection(title, rows, unit, noteOf?.(rows));
}

/** Adds a section, and prints medians and ratios to the first row. */
export function addReportSection(
  title: string,
  rows: MeasuredValues[],
  unit: MeasuredUnit = "ms",
  note?: string,
) {
  reportSections.push({ title, unit, rows, note });
  const first = median(rows[0].values);
  console.log(`\n${title}`);
  for (const { name, values } of rows) {
    const spread = `(${formatValue(Math.min(...values), unit)}–${
      formatValue(Math.max(...values), unit)
    })`;
    console.log(
      [
        `  ${name.padEnd(40)}`,
        `${formatValue(median(values), unit).padStart(7)} ${unit}`,
        spread.padEnd(16),
        `${values.length} runs`,
        `${(median(values) / first).toFixed(2)} ×`,
      ].join("  "),
    );
  }
  if (note) console.log(`  ${note}`);
}

/** Formats a value without its unit. */
export function formatValue(value: number, unit: MeasuredUnit): string {
  return value.toFixed(unit === "× the image" ? 3 : 0);
}

export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length / 2;
  return (sorted[Math.ceil(half) - 1] + sorted[Math.floor(half)]) / 2;
}
