/**
 * Runs files of tests, each in a process of its own, and reports how each ended.
 *
 * @module
 */
import { spawn } from "../../lib/system/process.ts";
import { denoArgs, ROOT } from "../deno.ts";
import type { Progress } from "../progress.ts";
import { bootsGuest } from "./files.ts";
import { runQueue } from "./queue.ts";
import { count, type FileReport, readJunit } from "./report.ts";

/** How {@linkcode runAll} runs files. */
export interface RunAllOptions {
  /** Flags for `deno test`. */
  flags: string[];
  /** So many files run at a time. */
  jobs: number;
  /** How long files took the last time, in seconds. */
  durations: Record<string, number>;
  /** What is printed. */
  progress: Progress;
}

/** What has ended, and the signal that kept the rest from it. */
export interface RunAllResult {
  reports: FileReport[];
  stoppedBy?: Deno.Signal;
}

/** Of guests, so many boot at a time: QEMU's emulation takes all of a processor. */
const GUESTS = 2;

/**
 * Runs files of tests. Of one that passes a line is printed, of one that fails
 * all that it has printed. A single file prints what it prints.
 *
 * Needs `--allow-run`, `--allow-read`, `--allow-write`.
 *
 * @param files Their paths in the project.
 * @param options How.
 */
export async function runAll(
  files: string[],
  options: RunAllOptions,
): Promise<RunAllResult> {
  const { flags, jobs, durations, progress } = options;
  const result: RunAllResult = { reports: [] };
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
    using _ = live ? undefined : progress.watch(`running ${file}`);
    const report = await runFile(file, how);
    if (stop.signal.aborted) return false;
    result.reports.push(report);
    if (!live) progress.line(reportText(report, await textOf(`${notes}.log`)));
    return report.ok || !flags.some((flag) => flag.startsWith("--fail-fast"));
  };
  try {
    await runQueue(files, { jobs, guests: GUESTS, bootsGuest, durations, run });
  } finally {
    for (const { name, listener } of onSignal) {
      Deno.removeSignalListener(name, listener);
    }
    await Deno.remove(dir, { recursive: true });
  }
  return result;
}

interface RunFileOptions {
  flags: string[];
  /** Where its process leaves what it has to say; endings are added. */
  notes: string;
  /** It prints on this terminal, rather than into a file. */
  live: boolean;
  signal: AbortSignal;
}

async function runFile(
  file: string,
  { flags, notes, live, signal }: RunFileOptions,
): Promise<FileReport> {
  const started = performance.now();
  const args = await denoArgs(
    ["test", "--no-check", "-A", `--junit-path=${notes}.xml`, ...flags, file],
  );
  const env = {
    TOOLSMITH_TEST_MISSING: `${notes}.missing`,
    // A file that fails is shown in full: here, where that may be no terminal.
    ...Deno.stdout.isTerminal() ? {} : { NO_COLOR: "1" },
  };
  // A file, as what a test leaves running would hold a pipe open.
  const shell = ["-c", 'exec "$@" >"$0" 2>&1', `${notes}.log`, Deno.execPath()];
  const common = { cwd: ROOT, env, signal };
  const child = signal.aborted ? undefined : live
    ? spawn(Deno.execPath(), {
      ...{ ...common, args, input: "inherit" },
      ...{ stdout: "inherit", stderr: "inherit" },
    })
    : spawn("sh", { ...common, args: [...shell, ...args], group: true });
  const code = (await child?.ended)?.code;
  return {
    file,
    tests: readJunit(await textOf(`${notes}.xml`)),
    seconds: (performance.now() - started) / 1000,
    ok: code === 0,
    missing: (await textOf(`${notes}.missing`)).split("\n").filter(Boolean),
  };
}

function reportText(report: FileReport, log: string): string {
  const { file, seconds, ok } = report;
  const { passed, failed, skipped } = count([report]);
  const counts = [
    `${passed} passed`,
    ...failed ? [`${failed} failed`] : [],
    ...skipped ? [`${skipped} skipped`] : [],
    `${seconds.toFixed(1)} s`,
  ];
  const line = `${ok ? "ok  " : "FAIL"} ${file} (${counts.join(", ")})`;
  return ok ? line : `${line}\n${log.trim()}\n`;
}

async function textOf(path: string): Promise<string> {
  return await Deno.readTextFile(path).catch(() => "");
}
