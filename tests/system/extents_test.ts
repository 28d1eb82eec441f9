import { assertEquals } from "@std/assert";
import fc from "fast-check";
import {
  addExtent,
  type Extent,
  extentBytes,
  gapsOf,
  parseExtents,
} from "../../lib/system/extents.ts";

const SIZE = 40;
const extents = fc.array(
  fc.tuple(fc.nat(SIZE), fc.nat(SIZE))
    .map(([a, b]): Extent => [Math.min(a, b), Math.max(a, b)]),
);

Deno.test("a set of bytes has what was added, in order, and gaps are the rest", () => {
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
    assertEquals(extentBytes(set), bytes.filter(Boolean).length);
    gapsOf(set, [0, SIZE]).forEach((gap) => {
      assertEquals(there.slice(...gap).some(Boolean), false);
      there.fill(true, ...gap);
    });
    assertEquals(there.every(Boolean), true);
    assertEquals(parseExtents(JSON.parse(JSON.stringify(set)), SIZE), set);
  }));
});

Deno.test("gaps are those within the bytes that are asked about", () => {
  assertEquals(gapsOf([[0, 4], [8, 12]], [2, 10]), [[4, 8]]);
  assertEquals(gapsOf([[4, 8]], [0, 6]), [[0, 4]]);
  assertEquals(gapsOf([[0, 4]], [0, 6]), [[4, 6]]);
  assertEquals(gapsOf([[0, 9]], [2, 3]), []);
  assertEquals(gapsOf([[0, 9]], [2, 9]), []);
  assertEquals(gapsOf([[0, 4], [20, 30]], [2, 10]), [[4, 10]]);
  assertEquals(gapsOf([[0, 4], [10, 30]], [2, 10]), [[4, 10]]);
});

Deno.test("a record that is no set of a file's bytes is not read", () => {
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
