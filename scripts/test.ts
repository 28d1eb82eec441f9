/**
 * Runs the tests: installs what they need, then runs each file in its own process, as
 * many in parallel as there are processors.
 *
 *     deno task test                      # the default suites
 *     deno task test tests/cache/         # some
 *     deno task test --shuffle --slowest  # in random order; print the slowest
 *     deno task test:fleet                # a suite that takes minutes
 *
 * Flags other than `--slowest`, `--quick` and `--jobs=N` are `deno test`'s. The
 * last line is `N passed, N failed, N skipped`.
 */
import { dirname, relative, resolve } from "@std/path";
import { BUNDLE_PATH, writeBundle } from "./bundle.ts";
import { PROJECT_ROOT } from "./deno.ts";
import { Progress } from "./progress.ts";
import { setUpTools } from "./setup.ts";
import {
  DEFAULT_PARTS,
  installHint,
  type Part,
  SUITE_PARTS,
} from "./setup/parts.ts";
import { startsProcesses, testFiles } from "./test/files.ts";
import {
  countLine,
  countTests,
  failureLines,
  skipLines,
  slowestLines,
} from "./test/report.ts";
import { runTestFiles } from "./test/run.ts";

/** The seconds that each file took last time. */
const DURATIONS_FILE = `${PROJECT_ROOT}/.cache/test_seconds.json`;
const SLOWEST_COUNT = 25;
/** More jobs would cost memory without saving time. */
const MAX_PROCESSORS = 8;
const MIN_FILES_TO_BUNDLE = 20;
/** `--quick` skips files that took longer, in seconds. */
const MAX_QUICK_S = 10;

/** One more than processors, as files also wait. */
const DEFAULT_JOBS = Math.min(navigator.hardwareConcurrency, MAX_PROCESSORS) +
  1;

const progress = new Progress({ output: Deno.stdout });

Deno.exitCode = await main(Deno.args);

async function main(args: string[]): Promise<number> {
  const unknown = args.find((arg, index) =>
    // A word after a flag may be the flag's value.
    !arg.startsWith("-") && !args[index - 1]?.startsWith("-") &&
    !pathExists(arg)
  );
  if (unknown !== undefined) {
    console.error(`no such file or directory: ${unknown}`);
    return 2;
  }
  const asked = parseTestArgs(args);
  const durations = await readDurations();
  const quick = (file: string) =>
    !startsProcesses(file) && (durations[file] ?? 0) < MAX_QUICK_S;
  const suites = Object.keys(SUITE_PARTS).map((name) => `tests/${name}`);
  const files = asked.paths.length > 0
    ? testFiles(asked.paths)
    : testFiles(["tests"], suites).filter((it) => !asked.quick || quick(it));
  if (!asked.quick) await setUpRequiredParts(files);
  // The bundle halves the start time of several hundred program starts.
  if (files.length >= MIN_FILES_TO_BUNDLE && await writeBundle()) {
    Deno.env.set("TOOLSMITH_TEST_PROGRAM", BUNDLE_PATH);
  }
  // Tests compare formatted sizes and times.
  Deno.env.set("LC_ALL", "C.UTF-8");

  const options = { ...asked, durations, progress };
  const { reports, stoppedBy } = await runTestFiles(files, options);
  if (stoppedBy) {
    const ended = `${reports.length} of ${files.length} files had ended`;
    printLines([`stopped by ${stoppedBy}: ${ended}`]);
    return stoppedBy === "SIGINT" ? 130 : 143;
  }
  for (const { file, seconds } of reports) durations[file] = seconds;
  if (asked.flags.length === 0) await writeDurations(durations);
  const counts = countTests(reports);
  const shuffle = asked.flags.find((flag) => flag.startsWith("--shuffle="));
  if (shuffle) printLines([`shuffled: ${shuffle}`]);
  if (asked.slowest) printLines(slowestLines(reports, SLOWEST_COUNT));
  printLines(skipLines(reports, (part) => installHint(part as Part)));
  printLines(failureLines(reports));
  printLines([countLine(counts)]);
  return counts.failed > 0 ? 1 : 0;
}

interface TestArgs {
  /** Files and directories; empty for the default suites. */
  paths: string[];
  /** Flags for `deno test`. */
  flags: string[];
  jobs: number;
  slowest: boolean;
  quick: boolean;
}

function parseTestArgs(args: string[]): TestArgs {
  const paths = args.filter((arg) => !arg.startsWith("-") && pathExists(arg));
  const jobs = args.find((arg) => arg.startsWith("--jobs="));
  const own = [...paths, jobs, "--slowest", "--quick"];
  const flags = args.filter((arg) => !own.includes(arg)).map((flag) =>
    // One seed for all files, so that it can be printed and repeated.
    flag === "--shuffle" ? `--shuffle=${Math.floor(Math.random() * 1e9)}` : flag
  );
  return {
    paths: paths.map((path) => relative(PROJECT_ROOT, resolve(path))),
    flags,
    jobs: jobs ? Number(jobs.slice("--jobs=".length)) : DEFAULT_JOBS,
    slowest: args.includes("--slowest"),
    quick: args.includes("--quick"),
  };
}

/** Installs the parts that the test files need and passes their paths in variables. */
async function setUpRequiredParts(files: string[]): Promise<void> {
  const parts = Object.entries(SUITE_PARTS)
    .filter(([suite]) => files.some((it) => it.startsWith(`tests/${suite}/`)))
    .flatMap(([, parts]) => parts);
  const { oras, registry, actionlint, qemu } = await setUpTools(
    [...DEFAULT_PARTS, ...parts],
  );
  const found = {
    TOOLSMITH_ORAS: oras,
    TOOLSMITH_TEST_REGISTRY: registry,
    TOOLSMITH_TEST_ACTIONLINT: actionlint,
    TOOLSMITH_QEMU: qemu,
  };
  for (const [name, path] of Object.entries(found)) {
    if (path) Deno.env.set(name, path);
  }
}

function pathExists(path: string): boolean {
  try {
    return Boolean(Deno.statSync(path));
  } catch {
    return false;
  }
}

async function readDurations(): Promise<Record<string, number>> {
  try {
    return JSON.parse(await Deno.readTextFile(DURATIONS_FILE));
  } catch {
    return {};
  }
}

async function writeDurations(durations: Record<string, number>) {
  await Deno.mkdir(dirname(DURATIONS_FILE), { recursive: true });
  const path = `${DURATIONS_FILE}.${crypto.randomUUID()}`;
  await Deno.writeTextFile(path, JSON.stringify(durations, null, 2));
  await Deno.rename(path, DURATIONS_FILE);
}

function printLines(lines: string[]) {
  lines.forEach((line) => console.log(line));
}
