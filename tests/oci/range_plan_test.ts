import { assert, assertEquals } from "@std/assert";
import { rangePlan } from "../../lib/oci/_range_plan.ts";

const MIB = 1024 * 1024;

Deno.test("pieces come in order, as large as the rate says, and none twice", () => {
  const plan = rangePlan([[MIB, 100 * MIB]], 4, () => 0);
  const [a, b, c] = [undefined, 10 * MIB / 1000, 1e9].map(plan.take);
  assertEquals([a!.at, a!.to], [MIB, 5 * MIB]);
  assertEquals([b!.at, b!.to], [5 * MIB, 15 * MIB]);
  // No more than a fair share of the rest, so that all end together.
  assertEquals(c!.at, 15 * MIB);
  assert(c!.to - c!.at <= 11 * MIB);
});

Deno.test("what a piece could not read is handed out again, first", () => {
  const plan = rangePlan([[0, 8 * MIB]], 2, () => 0);
  const a = plan.take(undefined)!;
  plan.arrived(a, MIB);
  plan.end(a, [[MIB, 4 * MIB]]);
  const again = plan.take(undefined)!;
  assertEquals([again.at, again.to], [MIB, 4 * MIB]);
  plan.end(again, []);
  assert(!plan.done);
  plan.end(plan.take(undefined)!, []);
  assert(plan.done);
  assertEquals(plan.take(1), undefined);
});

Deno.test("a slow connection is left what it can read until both are done", () => {
  let time = 0;
  const plan = rangePlan([[0, 4 * MIB]], 2, () => time);
  const slow = plan.take(undefined)!;
  assertEquals(plan.take(1000), undefined, "it has not shown its rate yet");
  time = 1000;
  plan.arrived(slow, MIB);
  assertEquals(plan.take(MIB / 1000), undefined, "nobody is faster");
  const taken = plan.take(5 * MIB / 1000)!;
  assertEquals([taken.at, taken.to], [1.5 * MIB, 4 * MIB]);
  assertEquals([slow.to, slow.taken.signal.aborted], [1.5 * MIB, false]);
});

Deno.test("a silent connection is left nothing", () => {
  let time = 0;
  const plan = rangePlan([[0, 4 * MIB]], 2, () => time);
  const silent = plan.take(undefined)!;
  plan.arrived(silent, 10);
  time = 2500;
  const taken = plan.take(undefined)!;
  assertEquals([taken.at, taken.to], [10, 4 * MIB]);
  assert(silent.taken.signal.aborted);
});

Deno.test("a piece from a silent connection is taken over again only after a byte has arrived", () => {
  let time = 0;
  const plan = rangePlan([[0, 4 * MIB]], 2, () => time);
  plan.take(undefined);
  time = 2500;
  const taken = plan.take(undefined)!;
  time = 100_000;
  assertEquals(plan.take(1e9), undefined);
  plan.arrived(taken, 1);
  time = 102_000;
  assertEquals(plan.take(undefined), undefined);
  time = 102_001;
  assertEquals(plan.take(undefined)!.at, 1);
});

Deno.test("a piece takes a fair share of all that is missing, and 32 MiB at most", () => {
  const gaps: [number, number][] = [
    [0, 40 * MIB],
    [50 * MIB, 70 * MIB],
    [80 * MIB, 100 * MIB],
  ];
  // 80 MiB for two connections, twice each.
  const fair = rangePlan(gaps, 2, () => 0).take(1e9)!;
  assertEquals([fair.at, fair.to], [0, 20 * MIB]);
  const large = rangePlan([[0, 1000 * MIB]], 2, () => 0).take(1e9)!;
  assertEquals(large.to, 32 * MIB);
});

Deno.test("what is handed out again comes in the order of the file, whoever has failed first", () => {
  const plan = rangePlan([[0, 16 * MIB]], 4, () => 0);
  const pieces = [0, 1, 2].map(() => plan.take(undefined)!);
  const extents = pieces.map(({ at, to }): [number, number] => [at, to]);
  for (const at of [1, 0, 2]) plan.end(pieces[at], [extents[at]]);
  const again = [0, 1, 2, 3].map(() => plan.take(undefined)!);
  assertEquals(again.map(({ at, to }) => [at, to]), [
    ...extents,
    [12 * MIB, 16 * MIB],
  ]);
  // Bytes that come for a piece which has ended do no harm.
  plan.arrived(pieces[0], 7);
  assertEquals(pieces[0].at, 7);
});

/** A plan of pieces with so many bytes each, of which so many have arrived. */
function begun(pieces: [size: number, arrived: number][]) {
  const clock = { time: 5000 };
  let at = 0;
  const gaps = pieces.map(([size]): [number, number] => [at, at += size]);
  const plan = rangePlan(gaps, 2, () => clock.time);
  const readers = pieces.map(([_, arrived]) => {
    const piece = plan.take(undefined)!;
    if (arrived > 0) plan.arrived(piece, arrived);
    return piece;
  });
  /** What is taken over by one that is so fast, so much later. */
  const takes = (rate: number, ms: number) => {
    clock.time = 5000 + ms;
    const taken = plan.take(rate);
    return taken && [taken.at, taken.to];
  };
  return { takes, readers, plan };
}

Deno.test("only who is more than twice as fast, and saves half a second, takes over", () => {
  // Two bytes a millisecond, and half a second to go.
  const rates: [number, number, number, [number, number] | undefined][] = [
    [3000, 2000, 9, undefined],
    [3000, 1999, 1.999 * 2, undefined],
    [3000, 1999, 1.999 * 2.5, [1999 + 286, 3000]],
    [3000, 1, 1, [1 + 3, 3000]],
    [3000, 0, 9, undefined],
    // Of a single byte nothing can be left to both.
    [2, 1, 10, undefined],
    [3000, 3000, 1e9, undefined],
  ];
  for (const [size, arrived, rate, expected] of rates) {
    const { takes } = begun([[size, arrived]]);
    assertEquals(takes(rate, 1000), expected, `${arrived} at ${rate}`);
  }
  // How long the first byte takes says little of those after it.
  const { takes } = begun([[30_000, 10]]);
  assertEquals(takes(30, 499), undefined);
  assertEquals(takes(30, 500), [10 + 20, 30_000]);
});

Deno.test("of several that will be late the latest is taken over, and a silent one before all", () => {
  const late = begun([[9000, 10], [9000, 20], [9000, 30]]);
  assertEquals(late.takes(90, 1000)![1], 9000);
  const other = begun([[9000, 30], [9000, 10], [9000, 20]]);
  assertEquals(other.takes(90, 1000)![1], 18_000);
  const same = begun([[9000, 10], [9000, 10]]);
  assertEquals(same.takes(90, 1000)![1], 9000);

  // Two seconds without a byte are not yet silence.
  const quiet = begun([[500, 300], [90_000, 300]]);
  assertEquals(quiet.takes(0.1, 2000), undefined);
  assertEquals(quiet.readers[0].taken.signal.aborted, false);
  const [silent, slow] = quiet.readers;
  quiet.plan.arrived(slow, 0);
  assertEquals(quiet.takes(90, 2001), [300, 500]);
  assertEquals(silent.taken.signal.aborted, true);
  assertEquals(slow.taken.signal.aborted, false);
});
