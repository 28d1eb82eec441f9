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
