/**
 * Says how much of lib/ the tests hold: changes one thing at a time, in a copy
 * of the project, and runs the tests of the changed file. A change that no test
 * notices is printed.
 *
 *     deno task mutate lib/cli lib/doctor --sample 50
 *
 * The tests of `lib/room/_name.ts` are `tests/room/name_test.ts`, for a command
 * `tests/e2e/name_test.ts`, and all that import it; where there are none, all of
 * `tests/room/`. A file whose tests do not
 * pass in time as it is, is left out.
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
  usage: "[--sample N] [--seed N] [--timeout SECONDS] [PATH…]",
  summary: "change lib/ and see whether tests notice",
  flags: [
    { name: "sample", value: "N", help: "only so many changes (all)" },
    { name: "seed", value: "N", help: "which of them (random)" },
    {
      name: "timeout",
      value: "SECONDS",
      help: "time for the tests of one change (120)",
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
  return copy;
}

/** The tests of a file of lib/. */
async function testsOf(file: string, files: string[]): Promise<string[]> {
  const [, room] = file.split("/");
  const name = basename(file, ".ts").replace(/^_/, "");
  const tests = files.filter((path) => /^tests\/.*_test\.ts$/.test(path));
  const own: string[] = [];
  for (const test of tests) {
    const text = await Deno.readTextFile(join(ROOT, test));
    const named = test === `tests/${room}/${name}_test.ts`;
    const used = room === "cli" && test === `tests/e2e/${name}_test.ts`;
    if (named || used || text.includes(`/${file}"`)) own.push(test);
  }
  return own.length > 0
    ? own
    : tests.filter((test) => test.startsWith(`tests/${room}/`));
}

/** Whether the tests pass. What takes too long does not. */
async function passes(
  copy: string,
  tests: string[],
  timeoutMs: number,
): Promise<boolean> {
  const flags = ["-A", "--no-check", "--fail-fast", "--quiet"];
  const args = ["run", "-A", join(copy, "scripts", "deno.ts"), "test"];
  try {
    const { code } = await run(Deno.execPath(), {
      args: [...args, ...flags, ...tests],
      cwd: copy,
      timeoutMs,
    });
    return code === 0;
  } catch {
    return false;
  }
}

/** Tries every candidate, and prints those that no test notices. */
async function tryAll(
  candidates: Candidate[],
  files: string[],
  timeoutMs: number,
): Promise<{ tried: number; noticed: number }> {
  const copy = await copyProject(files);
  const score = { tried: 0, noticed: 0 };
  let current = { file: "", tests: [""], sound: false };
  try {
    for (const { file, source, text, line, before, after } of candidates) {
      if (file !== current.file) {
        const tests = await testsOf(file, files);
        const sound = await passes(copy, tests, timeoutMs);
        if (!sound) console.error(`${file} is left out: its tests fail`);
        current = { file, tests, sound };
      }
      if (!current.sound) continue;
      await Deno.writeTextFile(join(copy, file), text);
      const survived = await passes(copy, current.tests, timeoutMs);
      await Deno.writeTextFile(join(copy, file), source);
      score.tried++;
      if (!survived) score.noticed++;
      else console.log(`${file}:${line}  ${before}  →  ${after || "nothing"}`);
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
    if (!paths.some((path) => file.startsWith(path))) continue;
    const source = await Deno.readTextFile(join(ROOT, file));
    all.push(...mutants(source).map((it) => ({ ...it, file, source })));
  }
  const seed = given.count("seed") ?? Math.floor(Math.random() * 1e6);
  const chosen = sample(all, given.count("sample") ?? all.length, seed);
  console.error(`${chosen.length} of ${all.length} changes, --seed ${seed}`);
  const timeoutMs = given.duration("timeout") ?? 120_000;
  const { tried, noticed } = await tryAll(chosen, files, timeoutMs);
  const share = (100 * noticed / Math.max(tried, 1)).toFixed(1);
  console.log(`noticed ${noticed} of ${tried} (${share} %)`);
}

if (import.meta.main) await main(Deno.args);
