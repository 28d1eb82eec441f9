/** Runs each test file in its own process and reports the results. */
import { spawnProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT, withImportMap } from "../deno.ts";
import type { Progress } from "../progress.ts";
import { bootsGuest } from "./files.ts";
import { runQueue } from "./queue.ts";
import { countTests, type FileReport, parseJunit } from "./report.ts";

/** Options of {@linkcode runTestFiles}. */
export interface RunTestFilesOptions {
  /** Flags for `deno test`. */
  flags: string[];
  /** Number of files that run in parallel. */
  jobs: number;
  /** The seconds that each file took last time. */
  durations: Record<string, number>;
  progress: Progress;
}

/** The finished files, and the signal that stopped the others. */
export interface RunTestFilesResult {
  reports: FileReport[];
  stoppedBy?: Deno.Signal;
}

/** QEMU's emulation takes a whole processor, so only few guests boot at a time. */
const PARALLEL_GUESTS = 2;

/**
 * Runs test files. A passing file prints one line, a failing one its whole output; a
 * single file inherits the terminal.
 *
 * Needs `--allow-run`, `--allow-read`, `--allow-write`.
 *
 * @param files Paths in the project.
 */
export async function runTestFiles(
  files: string[],
  options: RunTestFilesOptions,
): Promise<RunTestFilesResult> {
  const { flags, jobs, durations, progress } = options;
  const result: RunTestFilesResult = { reports: [] };
  const stop = new AbortController();
  const onSignal = (["SIGINT", "SIGTERM"] as const).map((name) => {
    const listener = () => {
      result.stoppedBy ??= name;
      stop.abort();
    };
    Deno.addSignalListener(name, listener);
    return { name, listener };
  });
  const dir = await Deno.makeTempDir({ prefix: "toolsmith-tests-" });
  const live = files.length === 1;
  const run = async (file: string) => {
    const notes = `${dir}/${crypto.randomUUID()}`;
    const how = { flags, notes, live, signal: stop.signal };
    using _ = live ? undefined : progress.beginStep(`running ${file}`);
    const report = await runTestFile(file, how);
    if (stop.signal.aborted) return false;
    result.reports.push(report);
    if (!live) {
      progress.printLine(fileReportText(report));
    }
    return report.ok || !flags.some((flag) => flag.startsWith("--fail-fast"));
  };
  try {
    await runQueue(files, {
      jobs,
      guests: PARALLEL_GUESTS,
      bootsGuest,
      durations,
      run,
    });
  } finally {
    for (const { name, listener } of onSignal) {
      Deno.removeSignalListener(name, listener);
    }
    await Deno.remove(dir, { recursive: true });
  }
  return result;
}

interface RunTestFileOptions {
  flags: string[];
  /** Path prefix of its log and report files. */
  notes: string;
  /** Whether it inherits this terminal instead of writing a log. */
  live: boolean;
  signal: AbortSignal;
}

async function runTestFile(
  file: string,
  { flags, notes, live, signal }: RunTestFileOptions,
): Promise<FileReport> {
  const started = performance.now();
  const args = await withImportMap(
    ["test", "--no-check", "-A", `--junit-path=${notes}.xml`, ...flags, file],
  );
  const env = {
    TOOLSMITH_TEST_MISSING: `${notes}.missing`,
    // The log of a failing file is printed here, which may not be a terminal.
    ...Deno.stdout.isTerminal() ? {} : { NO_COLOR: "1" },
  };
  // Log to a file: a process that a test leaves running would hold a pipe open.
  const shell = ["-c", 'exec "$@" >"$0" 2>&1', `${notes}.log`, Deno.execPath()];
  const common = { cwd: PROJECT_ROOT, env, signal };
  const child = signal.aborted
    ? undefined
    : live
    ? spawnProcess(Deno.execPath(), {
      ...{ ...common, args, input: "inherit" },
      ...{ stdout: "inherit", stderr: "inherit" },
    })
    : spawnProcess("sh", {
      ...common,
      args: [...shell, ...args],
      ownProcessGroup: true,
    });
  const code = (await child?.ended)?.code;
  return {
    file,
    tests: parseJunit(await readTextIfFound(`${notes}.xml`)),
    seconds: (performance.now() - started) / 1000,
    ok: code === 0,
    missing: (await readTextIfFound(`${notes}.missing`)).split("\n").filter(
      Boolean,
    ),
    log: code === 0 ? "" : await readTextIfFound(`${notes}.log`),
  };
}

function fileReportText(report: FileReport): string {
  const { file, seconds, ok, log } = report;
  const { passed, failed, skipped } = countTests([report]);
  const counts = [
    `${passed} passed`,
    ...failed ? [`${failed} failed`] : [],
    ...skipped ? [`${skipped} skipped`] : [],
    `${seconds.toFixed(1)} s`,
  ];
  const line = `${ok ? "ok  " : "FAIL"} ${file} (${counts.join(", ")})`;
  return ok ? line : `${line}\n${log.trim()}\n`;
}

async function readTextIfFound(path: string): Promise<string> {
  return await Deno.readTextFile(path).catch(() => "");
}
