/**
 * Mutation testing for lib/: changes one thing at a time in a copy of the project,
 * runs the tests of the changed file, and prints changes that no test detects.
 *
 *     deno task mutate lib/cli lib/doctor --sample 50
 *
 * The tests of `lib/package/_name.ts` are `tests/package/name_test.ts`, for a command
 * `tests/e2e/name_test.ts`, and all that import it; if none has its name, also all
 * of `tests/package/`. Tests that fail or time out without a change are skipped. A
 * timeout or a type error counts as detected.
 *
 * `--without guest` skips tests that boot a guest. Try what remains undetected again
 * with them, by its line:
 *
 *     deno task mutate lib/run/run_on_host.ts:65
 */
import { parseArgs } from "@std/cli/parse-args";
import { basename, dirname, join } from "@std/path";
import { runProcess } from "../lib/system/process.ts";
import { PROJECT_ROOT } from "./deno.ts";
import { findMutants, type Mutant } from "./mutants.ts";

const USAGE =
  "usage: deno task mutate [--sample N] [--seed N] [--timeout SECONDS] [--without PARTS] [PATH…]";

interface MutantOfFile extends Mutant {
  file: string;
  /** The file's original text. */
  source: string;
}

/** A linear congruential generator of numbers from 0 to below 1. */
function seededRandomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Chooses some at random and keeps their order. */
function randomSample<T>(all: T[], count: number, seed: number): T[] {
  const random = seededRandomNumbers(seed);
  const ranked = all.map((_, index) => ({ index, rank: random() }))
    .sort((a, b) => a.rank - b.rank);
  return ranked.slice(0, count).map(({ index }) => index)
    .sort((a, b) => a - b).map((index) => all[index]);
}

async function trackedFiles(): Promise<string[]> {
  const { stdout } = await runProcess("git", {
    args: ["ls-files"],
    cwd: PROJECT_ROOT,
  });
  return stdout.trim().split("\n");
}

/** Copies the project; the copy shares the programs in `.cache`. */
async function copyProject(files: string[]): Promise<string> {
  const copy = await Deno.makeTempDir({ prefix: "toolsmith-mutants-" });
  for (const file of files) {
    await Deno.mkdir(dirname(join(copy, file)), { recursive: true });
    await Deno.copyFile(join(PROJECT_ROOT, file), join(copy, file));
  }
  await Deno.symlink(join(PROJECT_ROOT, ".cache"), join(copy, ".cache"));
  // Some programs find the project's root by `.git`.
  await Deno.mkdir(join(copy, ".git"));
  return copy;
}

async function findTestsOf(file: string, files: string[]): Promise<string[]> {
  const [, packageName] = file.split("/");
  const name = basename(file, ".ts").replace(/^_/, "");
  const tests = files.filter((path) => /^tests\/.*_test\.ts$/.test(path));
  const own: string[] = [];
  const others: string[] = [];
  for (const test of tests) {
    const text = await Deno.readTextFile(join(PROJECT_ROOT, test));
    const named = test === `tests/${packageName}/${name}_test.ts`;
    const used = packageName === "cli" && test === `tests/e2e/${name}_test.ts`;
    if (named || used) own.push(test);
    else if (text.includes(`/${file}"`)) others.push(test);
  }
  const near = own.length > 0
    ? []
    : tests.filter((test) => test.startsWith(`tests/${packageName}/`));
  // The file's own tests detect most and run first.
  return [...new Set([...own, ...others, ...near])];
}

interface TestOptions {
  timeoutMs: number;
  /** Parts whose tests are skipped, comma-separated. */
  without: string;
}

/** Runs `deno test` or `deno check` in the copy. */
async function runDenoInCopy(
  copy: string,
  [command, ...paths]: string[],
  { timeoutMs, without }: TestOptions,
): Promise<"passed" | "failed" | "late"> {
  const deno = ["run", "-A", join(copy, "scripts", "deno.ts")];
  const flags = command === "test" ? ["-A", "--no-check", "--fail-fast"] : [];
  try {
    const { code } = await runProcess(Deno.execPath(), {
      args: [...deno, command, "--quiet", ...flags, ...paths],
      cwd: copy,
      timeoutMs,
      env: { TOOLSMITH_TEST_WITHOUT: without },
    });
    return code === 0 ? "passed" : "failed";
  } catch {
    return "late";
  }
}

/** Returns a filter for tests that pass without a change; each is run once. */
function passingTestsFilter(copy: string, options: TestOptions) {
  const known = new Map<string, boolean>();
  return async (tests: string[]) => {
    for (const test of tests) {
      if (known.has(test)) continue;
      const sound =
        await runDenoInCopy(copy, ["test", test], options) === "passed";
      if (!sound) console.error(`skipping ${test}: it fails without a change`);
      known.set(test, sound);
    }
    return tests.filter((test) => known.get(test));
  };
}

/** Tests every mutant and prints the undetected ones. */
async function testMutants(
  candidates: MutantOfFile[],
  files: string[],
  options: TestOptions,
): Promise<{ passed: number; failed: number; late: number; types: number }> {
  const copy = await copyProject(files);
  const sound = passingTestsFilter(copy, options);
  const score = { passed: 0, failed: 0, late: 0, types: 0 };
  try {
    for (const { file, source, text, line, before, after } of candidates) {
      const tests = await sound(await findTestsOf(file, files));
      await Deno.writeTextFile(join(copy, file), text);
      let how: keyof typeof score = "passed";
      if (tests.length > 0) {
        how = await runDenoInCopy(copy, ["test", ...tests], options);
      }
      if (how === "passed") {
        const checked = await runDenoInCopy(copy, ["check", file], options);
        if (checked === "failed") how = "types";
      }
      await Deno.writeTextFile(join(copy, file), source);
      score[how]++;
      if (how !== "passed") continue;
      console.log(`${file}:${line}  ${before}  →  ${after || "nothing"}`);
    }
  } finally {
    await Deno.remove(copy, { recursive: true });
  }
  return score;
}

async function main(args: string[]) {
  const { _: given, without = "", ...numbers } = parseArgs(args, {
    string: ["sample", "seed", "timeout", "without", "_"],
    unknown(_, name) {
      if (name !== undefined) throw new Error(USAGE);
    },
  });
  const numberOf = (name: string, otherwise: number) => {
    const value = Number(numbers[name] ?? otherwise);
    if (!(value >= 0)) throw new Error(USAGE);
    return value;
  };
  const paths = given.length > 0 ? given.map(String) : ["lib/"];
  const files = await trackedFiles();
  const all: MutantOfFile[] = [];
  for (const file of files) {
    if (!/^lib\/.*\.ts$/.test(file)) continue;
    const isMeant = (line: number) =>
      paths.some((path) =>
        `${file}:${line}:`.startsWith(path.replace(/:\d+$/, "$&:"))
      );
    const source = await Deno.readTextFile(join(PROJECT_ROOT, file));
    const meant = findMutants(source).filter(({ line }) => isMeant(line));
    all.push(...meant.map((it) => ({ ...it, file, source })));
  }
  const seed = numberOf("seed", Math.floor(Math.random() * 1e6));
  const chosen = randomSample(all, numberOf("sample", all.length), seed);
  console.error(`${chosen.length} of ${all.length} changes, --seed ${seed}`);
  const { passed, failed, late, types } = await testMutants(chosen, files, {
    timeoutMs: numberOf("timeout", 120) * 1000,
    without: String(without),
  });
  const noticed = failed + late + types;
  const share = (100 * noticed / Math.max(noticed + passed, 1)).toFixed(1);
  console.log(
    `detected ${noticed} of ${noticed + passed} (${share} %), ` +
      `${late} by a timeout, ${types} by the type checker`,
  );
}

if (import.meta.main) await main(Deno.args);
