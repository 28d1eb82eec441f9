import { assertEquals } from "@std/assert";
import fc from "fast-check";
import {
  addExtent,
  countExtentBytes,
  type Extent,
  findGaps,
  parseExtents,
} from "../../lib/system/extents.ts";

const SIZE = 40;
const extents = fc.array(
  fc.tuple(fc.nat(SIZE), fc.nat(SIZE))
    .map(([a, b]): Extent => [Math.min(a, b), Math.max(a, b)]),
);

Deno.test("addExtent() merges byte ranges in order, and findGaps() returns the rest", () => {
  fc.assert(fc.property(extents, (added) => {
    const bytes = new Array(SIZE).fill(false);
    let set: Extent[] = [];
    for (const extent of added) {
      set = addExtent(set, extent);
      bytes.fill(true, ...extent);
    }
    const there = new Array(SIZE).fill(false);
    set.forEach((extent) => there.fill(true, ...extent));
    assertEquals(there, bytes);
    assertEquals(countExtentBytes(set), bytes.filter(Boolean).length);
    findGaps(set, [0, SIZE]).forEach((gap) => {
      assertEquals(there.slice(...gap).some(Boolean), false);
      there.fill(true, ...gap);
    });
    assertEquals(there.every(Boolean), true);
    assertEquals(parseExtents(JSON.parse(JSON.stringify(set)), SIZE), set);
  }));
});

Deno.test("findGaps() returns only gaps within the given range", () => {
  assertEquals(findGaps([[0, 4], [8, 12]], [2, 10]), [[4, 8]]);
  assertEquals(findGaps([[4, 8]], [0, 6]), [[0, 4]]);
  assertEquals(findGaps([[0, 4]], [0, 6]), [[4, 6]]);
  assertEquals(findGaps([[0, 9]], [2, 3]), []);
  assertEquals(findGaps([[0, 9]], [2, 9]), []);
  assertEquals(findGaps([[0, 4], [20, 30]], [2, 10]), [[4, 10]]);
  assertEquals(findGaps([[0, 4], [10, 30]], [2, 10]), [[4, 10]]);
});

Deno.test("parseExtents() rejects JSON that is not an ordered set of ranges within the file", () => {
  const values = [
    null,
    {},
    [[0]],
    [[0, 4, 9]],
    [5],
    [[0, 4], { 0: 6, 1: 8, length: 2 }],
    [[2, 1]],
    [[1, 1]],
    [[-1, 2]],
    [[0, 0.5]],
    [[0, 11]],
    [[0, 4], [2, 6]],
    [[0, 4], [4, 6]],
    [["0", "4"]],
  ];
  for (const value of values) assertEquals(parseExtents(value, 10), undefined);
});
