/** Asserts that work takes linear time. */
import { assert } from "@std/assert";
import { cpuUsage } from "node:process";

/** The second input is this much longer; quadratic work takes 256 times as long. */
const INPUT_FACTOR = 16;
/** Between linear (16) and quadratic (256) growth. */
const MAX_TIME_FACTOR = 64;
/** Tolerance for garbage collection and short measurements. */
const SLACK_MS = 50;

/** Measures the CPU time of work in milliseconds, which other load hardly affects. */
export async function cpuMs(work: () => unknown): Promise<number> {
  const begun = cpuUsage();
  await work();
  return cpuUsage(begun).user / 1000;
}

/**
 * Asserts that work takes linear time in the length of its input.
 *
 * @param what The input's name in messages.
 * @param input Makes an input of about this length.
 * @param work The work to measure, best of three; its errors are ignored.
 * @param length The longest input. @default {64_000}
 */
export async function assertLinear<T>(
  what: string,
  input: (length: number) => T,
  work: (input: T) => unknown,
  length = 64_000,
): Promise<void> {
  const best = async (length: number) => {
    const made = input(length);
    const times: number[] = [];
    for (let n = 0; n < 3; n++) times.push(await cpuMs(() => work(made)));
    return Math.min(...times);
  };
  const short = await best(length / INPUT_FACTOR);
  const long = await best(length);
  assert(
    long < MAX_TIME_FACTOR * short + SLACK_MS,
    `${what}: ${short} ms, and ${long} ms for ${INPUT_FACTOR} times the length`,
  );
}
