/**
 * Says how much of lib/ the tests hold: changes one thing at a time, in a copy
 * of the project, and runs the tests of the changed file. A change that no test
 * notices is printed.
 *
 *     deno task mutate lib/cli lib/doctor --sample 50
 *
 * The tests of `lib/room/_name.ts` are `tests/room/name_test.ts`, for a command
 * `tests/e2e/name_test.ts`, and all that import it; where none has its name, all
 * of `tests/room/` too. A test that does not pass in time as it is, is left out.
 * Tests that take longer with a change have noticed it, and so has the type
 * checker where it refuses the change; how many is printed.
 *
 * With `--without guest`, tests that boot a guest are skipped. What escapes the
 * others is tried again with them by its line:
 *
 *     deno task mutate lib/run/host.ts:65
 *
 * @module
 */
import { basename, dirname, join } from "@std/path";
import { ParsedFlags } from "../lib/cli/flag_values.ts";
import type { CommandSpec } from "../lib/cli/spec.ts";
import { run } from "../lib/system/process.ts";
import { ROOT } from "./deno.ts";
import { type Mutant, mutants } from "./mutants.ts";

const SPEC: CommandSpec = {
  name: "mutate",
  usage:
    "[--sample N] [--seed N] [--timeout SECONDS] [--without PARTS] [PATH…]",
  summary: "change lib/ and see whether tests notice",
  flags: [
    { name: "sample", value: "N", help: "only so many changes (all)" },
    { name: "seed", value: "N", help: "which of them (random)" },
    {
      name: "timeout",
      value: "SECONDS",
      help: "time for the tests of one change (120)",
    },
    {
      name: "without",
      value: "PARTS",
      help: "skip tests that need one of these: guest,registry",
    },
  ],
  positionals: [0, 1000],
};

interface Candidate extends Mutant {
  /** The file, from the project's root. */
  file: string;
  /** Its text as it is. */
  source: string;
}

/** The numbers of a seed, from 0 to below 1 (a linear congruential generator). */
function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Takes some at random, in their old order. */
function sample<T>(all: T[], count: number, seed: number): T[] {
  const random = randomNumbers(seed);
  const ranked = all.map((_, index) => ({ index, rank: random() }))
    .sort((a, b) => a.rank - b.rank);
  return ranked.slice(0, count).map(({ index }) => index)
    .sort((a, b) => a - b).map((index) => all[index]);
}

async function trackedFiles(): Promise<string[]> {
  const { stdout } = await run("git", { args: ["ls-files"], cwd: ROOT });
  return stdout.trim().split("\n");
}

/** A copy of the project, which shares the programs in `.cache`. */
async function copyProject(files: string[]): Promise<string> {
  const copy = await Deno.makeTempDir({ prefix: "toolsmith-mutants-" });
  for (const file of files) {
    await Deno.mkdir(dirname(join(copy, file)), { recursive: true });
    await Deno.copyFile(join(ROOT, file), join(copy, file));
  }
  await Deno.symlink(join(ROOT, ".cache"), join(copy, ".cache"));
  // Some programs find the project's root by it.
  await Deno.mkdir(join(copy, ".git"));
  return copy;
}

/** The tests of a file of lib/. */
async function testsOf(file: string, files: string[]): Promise<string[]> {
  const [, room] = file.split("/");
  const name = basename(file, ".ts").replace(/^_/, "");
  const tests = files.filter((path) => /^tests\/.*_test\.ts$/.test(path));
  const own: string[] = [];
  const others: string[] = [];
  for (const test of tests) {
    const text = await Deno.readTextFile(join(ROOT, test));
    const named = test === `tests/${room}/${name}_test.ts`;
    const used = room === "cli" && test === `tests/e2e/${name}_test.ts`;
    if (named || used) own.push(test);
    else if (text.includes(`/${file}"`)) others.push(test);
  }
  const near = own.length > 0
    ? []
    : tests.filter((test) => test.startsWith(`tests/${room}/`));
  // Its own notice most, and come first.
  return [...new Set([...own, ...others, ...near])];
}

interface TestOptions {
  /** Time for the tests, in milliseconds. */
  timeoutMs: number;
  /** Parts whose tests are skipped, with commas between. */
  without: string;
}

/** How the tests end, or the type checker. */
async function attempt(
  copy: string,
  [command, ...paths]: string[],
  { timeoutMs, without }: TestOptions,
): Promise<"passed" | "failed" | "late"> {
  const deno = ["run", "-A", join(copy, "scripts", "deno.ts")];
  const flags = command === "test" ? ["-A", "--no-check", "--fail-fast"] : [];
  try {
    const { code } = await run(Deno.execPath(), {
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

/** The tests that pass in time while nothing is changed; each is run once. */
function soundTests(copy: string, options: TestOptions) {
  const known = new Map<string, boolean>();
  return async (tests: string[]) => {
    for (const test of tests) {
      if (known.has(test)) continue;
      const sound = await attempt(copy, ["test", test], options) === "passed";
      if (!sound) console.error(`${test} is left out: it fails as it is`);
      known.set(test, sound);
    }
    return tests.filter((test) => known.get(test));
  };
}

/** Tries every candidate, and prints those that nothing notices. */
async function tryAll(
  candidates: Candidate[],
  files: string[],
  options: TestOptions,
): Promise<{ passed: number; failed: number; late: number; types: number }> {
  const copy = await copyProject(files);
  const sound = soundTests(copy, options);
  const score = { passed: 0, failed: 0, late: 0, types: 0 };
  try {
    for (const { file, source, text, line, before, after } of candidates) {
      const tests = await sound(await testsOf(file, files));
      await Deno.writeTextFile(join(copy, file), text);
      let how: keyof typeof score = "passed";
      if (tests.length > 0) {
        how = await attempt(copy, ["test", ...tests], options);
      }
      if (how === "passed") {
        const checked = await attempt(copy, ["check", file], options);
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
  const given = new ParsedFlags(SPEC, args);
  const paths = given.positionals.length > 0 ? given.positionals : ["lib/"];
  const files = await trackedFiles();
  const all: Candidate[] = [];
  for (const file of files) {
    if (!/^lib\/.*\.ts$/.test(file)) continue;
    const isMeant = (line: number) =>
      paths.some((path) =>
        `${file}:${line}:`.startsWith(path.replace(/:\d+$/, "$&:"))
      );
    const source = await Deno.readTextFile(join(ROOT, file));
    const meant = mutants(source).filter(({ line }) => isMeant(line));
    all.push(...meant.map((it) => ({ ...it, file, source })));
  }
  const seed = given.count("seed") ?? Math.floor(Math.random() * 1e6);
  const chosen = sample(all, given.count("sample") ?? all.length, seed);
  console.error(`${chosen.length} of ${all.length} changes, --seed ${seed}`);
  const timeoutMs = given.duration("timeout") ?? 120_000;
  const without = given.text("without") ?? "";
  const { passed, failed, late, types } = await tryAll(chosen, files, {
    timeoutMs,
    without,
  });
  const noticed = failed + late + types;
  const share = (100 * noticed / Math.max(noticed + passed, 1)).toFixed(1);
  console.log(
    `noticed ${noticed} of ${noticed + passed} (${share} %), ` +
      `${late} by taking too long, ${types} by their types`,
  );
}

if (import.meta.main) await main(Deno.args);
