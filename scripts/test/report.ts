/** Reads Deno's JUnit reports and summarizes them. */

export interface TestResult {
  name: string;
  outcome: "passed" | "failed" | "skipped";
  seconds: number;
}

/** The results of one test file. */
export interface FileReport {
  /** Path in the project. */
  file: string;
  /** Empty if the file could not be loaded. */
  tests: TestResult[];
  seconds: number;
  /** Whether its process exited with 0. */
  ok: boolean;
  /** Missing parts that its tests need; `root` if they need that user. */
  missing: string[];
  /** What a failed file printed; empty if it wrote to the terminal. */
  log: string;
}

const JUNIT_CASE_PATTERN =
  /<testcase name="([^"]*)"[^>]* time="([^"]*)"[^>]*>([\s\S]*?)<\/testcase>/g;
/** Deno prints the errors of all tests and steps, then their names. */
const LOG_ERRORS_PATTERN = / ERRORS \S*\n([\s\S]*?)\n\S* FAILURES /;
const MAX_ERROR_LINES = 60;
const XML_ENTITIES: Record<string, string> = {
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  amp: "&",
};

/**
 * Parses Deno's JUnit file; steps of tests are left out.
 */
export function parseJunit(xml: string): TestResult[] {
  const tests = [...xml.matchAll(JUNIT_CASE_PATTERN)].map(
    ([, name, seconds, body]): TestResult => ({
      name: name.replace(/&(\w+);/g, (_, entity) => XML_ENTITIES[entity]),
      seconds: Number(seconds),
      outcome: body.includes("<failure")
        ? "failed"
        : body.includes("<skipped")
        ? "skipped"
        : "passed",
    }),
  );
  // A step follows its test, and its name starts with the test's.
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

export interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/** Counts tests. A file that fails without a failed test counts as one failure. */
export function countTests(reports: FileReport[]): Counts {
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
 * Explains skipped tests: a count per missing part, and the names of tests for
 * another user or system.
 *
 * @param remedyOf Returns how to install a part.
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

/**
 * Lists failed tests with their errors, for the end of the output: a service that shows
 * a part of a long log shows its end.
 */
export function failureLines(reports: FileReport[]): string[] {
  return reports.filter(({ ok }) => !ok).flatMap(({ file, tests, log }) => {
    const failed = tests.filter(({ outcome }) => outcome === "failed");
    const [, errors = ""] = LOG_ERRORS_PATTERN.exec(log) ?? [];
    return [
      ...errors.split("\n").slice(0, MAX_ERROR_LINES).filter(Boolean),
      ...failed.length > 0
        ? failed.map(({ name }) => `failed: ${file}: ${name}`)
        : [`failed: ${file}`],
    ];
  });
}

export function slowestLines(reports: FileReport[], most: number): string[] {
  return reports
    .flatMap(({ file, tests }) => tests.map((test) => ({ file, ...test })))
    .sort((a, b) => b.seconds - a.seconds)
    .slice(0, most)
    .map(({ file, name, seconds }) =>
      `${seconds.toFixed(1).padStart(6)} s  ${file}: ${name}`
    );
}
