/**
 * What test files report: read from Deno's JUnit files, and summed up.
 *
 * @module
 */

/** One test of a file. */
export interface TestResult {
  /** Its name. */
  name: string;
  /** How it ended. */
  outcome: "passed" | "failed" | "skipped";
  /** How long it took. */
  seconds: number;
}

/** What running one file of tests came to. */
export interface FileReport {
  /** Its path in the project. */
  file: string;
  /** Its tests; none where it could not be loaded. */
  tests: TestResult[];
  /** How long its process took. */
  seconds: number;
  /** Whether its process ended well. */
  ok: boolean;
  /** The parts that its tests need and that are missing; `root` for its user. */
  missing: string[];
}

const CASE =
  /<testcase name="([^"]*)"[^>]* time="([^"]*)"[^>]*>([\s\S]*?)<\/testcase>/g;
const ENTITIES: Record<string, string> = {
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  amp: "&",
};

/**
 * Reads the tests of a JUnit file that Deno wrote, without their steps.
 *
 * @param xml Its text.
 */
export function readJunit(xml: string): TestResult[] {
  const tests = [...xml.matchAll(CASE)].map(
    ([, name, seconds, body]): TestResult => ({
      name: name.replace(/&(\w+);/g, (_, entity) => ENTITIES[entity]),
      seconds: Number(seconds),
      outcome: body.includes("<failure")
        ? "failed"
        : body.includes("<skipped")
        ? "skipped"
        : "passed",
    }),
  );
  // A step comes after its test, whose name it begins with.
  const names = new Set<string>();
  return tests.filter(({ name }) => {
    for (
      let at = name.indexOf(" > ");
      at >= 0;
      at = name.indexOf(" > ", at + 1)
    ) {
      if (names.has(name.slice(0, at))) return false;
    }
    names.add(name);
    return true;
  });
}

/** How many tests ended in each way. */
export interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/** Counts tests. A file that fails without a failed test counts as one. */
export function count(reports: FileReport[]): Counts {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  for (const { tests, ok } of reports) {
    for (const { outcome } of tests) counts[outcome]++;
    if (!ok && tests.every(({ outcome }) => outcome !== "failed")) {
      counts.failed++;
    }
  }
  return counts;
}

/** The line that CI reads: `N passed, N failed, N skipped`. */
export function countLine({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed, ${skipped} skipped`;
}

/**
 * Says why tests were skipped: how many for want of which parts, and by name
 * those that another user or system would run.
 *
 * @param reports All of them.
 * @param remedyOf Says how a part is had.
 * @returns Lines; none where nothing was skipped.
 */
export function skipLines(
  reports: FileReport[],
  remedyOf: (part: string) => string,
): string[] {
  const groups = new Map<string, string[]>();
  const parts = new Set<string>();
  for (const { file, tests, missing } of reports) {
    const skipped = tests.filter(({ outcome }) => outcome === "skipped");
    if (skipped.length === 0) continue;
    const lacking = missing.filter((name) => name !== "root");
    lacking.forEach((part) => parts.add(part));
    const why = lacking.length > 0
      ? `without ${lacking.sort().join(", ")}`
      : missing.length > 0
      ? "need root"
      : "not for this system or user";
    const names = skipped.map(({ name }) => `${file}: ${name}`);
    groups.set(why, [...groups.get(why) ?? [], ...names]);
  }
  const lines = [...groups].sort().flatMap(([why, names]) => [
    `skipped ${names.length}: ${why}`,
    ...why.startsWith("without") ? [] : names.map((name) => `  ${name}`),
  ]);
  const remedies = [...parts].sort().map((part) =>
    `${part} is missing: ${remedyOf(part)}`
  );
  return [...lines, ...remedies];
}

/** Names what failed, to be found below everything else. */
export function failureLines(reports: FileReport[]): string[] {
  return reports.filter(({ ok }) => !ok).flatMap(({ file, tests }) => {
    const failed = tests.filter(({ outcome }) => outcome === "failed");
    return failed.length > 0
      ? failed.map(({ name }) => `failed: ${file}: ${name}`)
      : [`failed: ${file}`];
  });
}

/** The slowest tests, the slowest first. */
export function slowestLines(reports: FileReport[], most: number): string[] {
  return reports
    .flatMap(({ file, tests }) => tests.map((test) => ({ file, ...test })))
    .sort((a, b) => b.seconds - a.seconds)
    .slice(0, most)
    .map(({ file, name, seconds }) =>
      `${seconds.toFixed(1).padStart(6)} s  ${file}: ${name}`
    );
}
