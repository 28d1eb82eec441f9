import { assert, assertEquals } from "@std/assert";
import type { Extent } from "../../lib/system/extents.ts";
import { planRanges } from "../../lib/transfer/_range_plan.ts";
import { assertLinear } from "../support/assert_linear.ts";

const MIB = 1024 * 1024;

Deno.test("RangePlan.takePiece() hands out pieces in order, larger ones to a faster connection, up to a fair share", () => {
  const plan = planRanges([[MIB, 100 * MIB]], 4, () => 0);
  const [a, b, c] = [undefined, 10 * MIB / 1000, 1e9].map(plan.takePiece);
  assertEquals([a!.at, a!.to], [MIB, 5 * MIB]);
  assertEquals([b!.at, b!.to], [5 * MIB, 15 * MIB]);
  // At most a fair share of the rest, so that all connections finish together.
  assertEquals(c!.at, 15 * MIB);
  assert(c!.to - c!.at <= 11 * MIB);
});

Deno.test("RangePlan.endPiece() returns unwritten bytes to the front of the plan", () => {
  const plan = planRanges([[0, 8 * MIB]], 2, () => 0);
  const a = plan.takePiece(undefined)!;
  plan.recordReceivedBytes(a, MIB);
  plan.endPiece(a, [[MIB, 4 * MIB]]);
  const again = plan.takePiece(undefined)!;
  assertEquals([again.at, again.to], [MIB, 4 * MIB]);
  plan.endPiece(again, []);
  assert(!plan.isDone);
  plan.endPiece(plan.takePiece(undefined)!, []);
  assert(plan.isDone);
  assertEquals(plan.takePiece(1), undefined);
});

Deno.test("RangePlan.takePiece() takes over as much of a slow piece as lets both connections finish together", () => {
  let time = 0;
  const plan = planRanges([[0, 4 * MIB]], 2, () => time);
  const slow = plan.takePiece(undefined)!;
  assertEquals(
    plan.takePiece(1000),
    undefined,
    "it has not shown its rate yet",
  );
  time = 1000;
  plan.recordReceivedBytes(slow, MIB);
  assertEquals(plan.takePiece(MIB / 1000), undefined, "nobody is faster");
  const taken = plan.takePiece(5 * MIB / 1000)!;
  assertEquals([taken.at, taken.to], [1.5 * MIB, 4 * MIB]);
  assertEquals([slow.to, slow.takeover.signal.aborted], [1.5 * MIB, false]);
});

Deno.test("RangePlan.takePiece() takes over all remaining bytes of a silent connection", () => {
  let time = 0;
  const plan = planRanges([[0, 4 * MIB]], 2, () => time);
  const silent = plan.takePiece(undefined)!;
  plan.recordReceivedBytes(silent, 10);
  time = 2500;
  const taken = plan.takePiece(undefined)!;
  assertEquals([taken.at, taken.to], [10, 4 * MIB]);
  assert(silent.takeover.signal.aborted);
});

Deno.test("RangePlan.takePiece() takes over a silent connection's piece again only after a byte arrives", () => {
  let time = 0;
  const plan = planRanges([[0, 4 * MIB]], 2, () => time);
  plan.takePiece(undefined);
  time = 2500;
  const taken = plan.takePiece(undefined)!;
  time = 100_000;
  assertEquals(plan.takePiece(1e9), undefined);
  plan.recordReceivedBytes(taken, 1);
  time = 102_000;
  assertEquals(plan.takePiece(undefined), undefined);
  time = 102_001;
  assertEquals(plan.takePiece(undefined)!.at, 1);
});

Deno.test("RangePlan.takePiece() limits a piece to a fair share of the missing bytes and to 32 MiB", () => {
  const gaps: [number, number][] = [
    [0, 40 * MIB],
    [50 * MIB, 70 * MIB],
    [80 * MIB, 100 * MIB],
  ];
  // 80 MiB divided by two connections, with two pieces each.
  const fair = planRanges(gaps, 2, () => 0).takePiece(1e9)!;
  assertEquals([fair.at, fair.to], [0, 20 * MIB]);
  const large = planRanges([[0, 1000 * MIB]], 2, () => 0).takePiece(1e9)!;
  assertEquals(large.to, 32 * MIB);
});

Deno.test("RangePlan.takePiece() hands out returned bytes in file order, whichever piece failed first", () => {
  const plan = planRanges([[0, 16 * MIB]], 4, () => 0);
  const pieces = [0, 1, 2].map(() => plan.takePiece(undefined)!);
  const extents = pieces.map(({ at, to }): [number, number] => [at, to]);
  for (const at of [1, 0, 2]) plan.endPiece(pieces[at], [extents[at]]);
  const again = [0, 1, 2, 3].map(() => plan.takePiece(undefined)!);
  assertEquals(again.map(({ at, to }) => [at, to]), [
    ...extents,
    [12 * MIB, 16 * MIB],
  ]);
  // Bytes of an ended piece are ignored.
  plan.recordReceivedBytes(pieces[0], 7);
  assertEquals(pieces[0].at, 7);
});

/** Creates a plan whose pieces are being downloaded. */
function begun(pieces: [size: number, arrived: number][]) {
  const clock = { time: 5000 };
  let at = 0;
  const gaps = pieces.map(([size]): [number, number] => [at, at += size]);
  const plan = planRanges(gaps, 2, () => clock.time);
  const readers = pieces.map(([_, arrived]) => {
    const piece = plan.takePiece(undefined)!;
    if (arrived > 0) plan.recordReceivedBytes(piece, arrived);
    return piece;
  });
  /** Returns the range that a connection with this rate takes over at a time. */
  const takes = (rate: number, ms: number) => {
    clock.time = 5000 + ms;
    const taken = plan.takePiece(rate);
    return taken && [taken.at, taken.to];
  };
  return { takes, readers, plan };
}

Deno.test("RangePlan.takePiece() takes over only at more than twice the rate and with over half a second left", () => {
  // Two bytes per millisecond, and half a second left.
  const rates: [number, number, number, [number, number] | undefined][] = [
    [3000, 2000, 9, undefined],
    [3000, 1999, 1.999 * 2, undefined],
    [3000, 1999, 1.999 * 2.5, [1999 + 286, 3000]],
    [3000, 1, 1, [1 + 3, 3000]],
    [3000, 0, 9, undefined],
    // A single byte cannot be divided.
    [2, 1, 10, undefined],
    [3000, 3000, 1e9, undefined],
  ];
  for (const [size, arrived, rate, expected] of rates) {
    const { takes } = begun([[size, arrived]]);
    assertEquals(takes(rate, 1000), expected, `${arrived} at ${rate}`);
  }
  // The time to the first byte says little about the rate.
  const { takes } = begun([[30_000, 10]]);
  assertEquals(takes(30, 499), undefined);
  assertEquals(takes(30, 500), [10 + 20, 30_000]);
});

Deno.test("RangePlan.takePiece() takes over the silent connection first, else the one that would finish last", () => {
  const late = begun([[9000, 10], [9000, 20], [9000, 30]]);
  assertEquals(late.takes(90, 1000)![1], 9000);
  const other = begun([[9000, 30], [9000, 10], [9000, 20]]);
  assertEquals(other.takes(90, 1000)![1], 18_000);
  const same = begun([[9000, 10], [9000, 10]]);
  assertEquals(same.takes(90, 1000)![1], 9000);

  // Exactly two seconds without a byte do not count as silent.
  const quiet = begun([[500, 300], [90_000, 300]]);
  assertEquals(quiet.takes(0.1, 2000), undefined);
  assertEquals(quiet.readers[0].takeover.signal.aborted, false);
  const [silent, slow] = quiet.readers;
  quiet.plan.recordReceivedBytes(slow, 0);
  assertEquals(quiet.takes(90, 2001), [300, 500]);
  assertEquals(silent.takeover.signal.aborted, true);
  assertEquals(slow.takeover.signal.aborted, false);
});

Deno.test("RangePlan takes linear time in the number of gaps", async () => {
  const gaps = (count: number) =>
    Array.from({ length: count }, (_, nth): Extent => [2 * nth, 2 * nth + 1]);
  await assertLinear("gaps", gaps, (gaps) => {
    const plan = planRanges(gaps, 4, () => 0);
    for (const _ of gaps) plan.endPiece(plan.takePiece(1)!, []);
    assert(plan.isDone);
  }, 32_000);
});
