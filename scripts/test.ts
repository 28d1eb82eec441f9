/**
 * Passes the tests: brings what they need, then runs their files, each in a
 * process of its own, as many at a time as there are processors.
 *
 *     deno task test                      # the usual ones
 *     deno task test tests/cache/         # some
 *     deno task test --shuffle --slowest  # in another order; name the slowest
 *     deno task test:fleet                # a suite that takes minutes
 *
 * Flags other than `--slowest`, `--quick` and `--jobs=N` are `deno test`'s. The
 * last line is `N passed, N failed, N skipped`.
 *
 * @module
 */
import { dirname, relative, resolve } from "@std/path";
import { ROOT } from "./deno.ts";
import { Progress } from "./progress.ts";
import { setup } from "./setup.ts";
import { type Part, remedyOf, SUITES, USUAL } from "./setup/parts.ts";
import { startsProcesses, testFiles } from "./test/files.ts";
import {
  count,
  countLine,
  failureLines,
  skipLines,
  slowestLines,
} from "./test/report.ts";
import { runAll } from "./test/run.ts";

/** How long files took the last time, in seconds. */
const DURATIONS = `${ROOT}/.cache/test_seconds.json`;
/** So many of the slowest tests are named. */
const SLOWEST = 25;
/** More would take more memory than time. */
const MAX_PROCESSORS = 8;
/** A file that takes longer is not among the quick ones, in seconds. */
const QUICK_S = 10;

/** As many files at a time as there are processors, and one that waits. */
const JOBS = Math.min(navigator.hardwareConcurrency, MAX_PROCESSORS) + 1;

const progress = new Progress({ output: Deno.stdout });

Deno.exitCode = await main(Deno.args);

async function main(args: string[]): Promise<number> {
  const unknown = args.find((arg, index) =>
    // What follows a flag may be its value.
    !arg.startsWith("-") && !args[index - 1]?.startsWith("-") && !exists(arg)
  );
  if (unknown !== undefined) {
    console.error(`no such file or directory: ${unknown}`);
    return 2;
  }
  const asked = readArgs(args);
  const durations = await readDurations();
  const quick = (file: string) =>
    !startsProcesses(file) && (durations[file] ?? 0) < QUICK_S;
  const suites = Object.keys(SUITES).map((name) => `tests/${name}`);
  const files = asked.paths.length > 0
    ? testFiles(asked.paths)
    : testFiles(["tests"], suites).filter((it) => !asked.quick || quick(it));
  if (!asked.quick) await bringParts(files);
  // Tests read sizes and times.
  Deno.env.set("LC_ALL", "C.UTF-8");

  const options = { ...asked, durations, progress };
  const { reports, stoppedBy } = await runAll(files, options);
  if (stoppedBy) {
    const ended = `${reports.length} of ${files.length} files had ended`;
    print([`stopped by ${stoppedBy}: ${ended}`]);
    return stoppedBy === "SIGINT" ? 130 : 143;
  }
  for (const { file, seconds } of reports) durations[file] = seconds;
  if (asked.flags.length === 0) await writeDurations(durations);
  const counts = count(reports);
  const shuffle = asked.flags.find((flag) => flag.startsWith("--shuffle="));
  if (shuffle) print([`shuffled: ${shuffle}`]);
  if (asked.slowest) print(slowestLines(reports, SLOWEST));
  print(skipLines(reports, (part) => remedyOf(part as Part)));
  print(failureLines(reports));
  print([countLine(counts)]);
  return counts.failed > 0 ? 1 : 0;
}

/** What the command line asks for. */
interface Asked {
  /** Files and directories; none for the usual tests. */
  paths: string[];
  /** Flags for `deno test`. */
  flags: string[];
  jobs: number;
  slowest: boolean;
  quick: boolean;
}

function readArgs(args: string[]): Asked {
  const paths = args.filter((arg) => !arg.startsWith("-") && exists(arg));
  const jobs = args.find((arg) => arg.startsWith("--jobs="));
  const own = [...paths, jobs, "--slowest", "--quick"];
  const flags = args.filter((arg) => !own.includes(arg)).map((flag) =>
    // All files in the order of one seed, so that it can be named.
    flag === "--shuffle" ? `--shuffle=${Math.floor(Math.random() * 1e9)}` : flag
  );
  return {
    paths: paths.map((path) => relative(ROOT, resolve(path))),
    flags,
    jobs: jobs ? Number(jobs.slice("--jobs=".length)) : JOBS,
    slowest: args.includes("--slowest"),
    quick: args.includes("--quick"),
  };
}

/** Brings what files of tests need, and tells them where it is. */
async function bringParts(files: string[]): Promise<void> {
  const parts = Object.entries(SUITES)
    .filter(([suite]) => files.some((it) => it.startsWith(`tests/${suite}/`)))
    .flatMap(([, parts]) => parts);
  const { oras, registry, actionlint, qemu } = await setup(
    [...USUAL, ...parts],
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

function exists(path: string): boolean {
  try {
    return Boolean(Deno.statSync(path));
  } catch {
    return false;
  }
}

async function readDurations(): Promise<Record<string, number>> {
  try {
    return JSON.parse(await Deno.readTextFile(DURATIONS));
  } catch {
    return {};
  }
}

async function writeDurations(durations: Record<string, number>) {
  await Deno.mkdir(dirname(DURATIONS), { recursive: true });
  const path = `${DURATIONS}.${crypto.randomUUID()}`;
  await Deno.writeTextFile(path, JSON.stringify(durations, null, 2));
  await Deno.rename(path, DURATIONS);
}

function print(lines: string[]) {
  lines.forEach((line) => console.log(line));
}
