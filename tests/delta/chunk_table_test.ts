import { assertEquals } from "@std/assert";
import { createChunkTable, viewOf } from "../../lib/delta/_chunk_table.ts";
import { RECORD_BYTES } from "../../lib/delta/chunker.ts";

/** Enough that many of them are looked up past others. */
const COUNT = 1000;

type Part = "length" | "upper half of the hash" | "lower half of the hash";

/** Records that differ in one part only. */
function recordsFrom(first: number, part: Part) {
  const records = new Uint8Array(COUNT * RECORD_BYTES).fill(7);
  const view = viewOf(records);
  for (let nth = 0; nth < COUNT; nth++) {
    const at = nth * RECORD_BYTES;
    const value = first + nth;
    if (part === "length") view.setUint16(at, value);
    else view.setUint32(at + (part.startsWith("upper") ? 2 : 6), value);
  }
  return records;
}

for (
  const part of [
    "length",
    "upper half of the hash",
    "lower half of the hash",
  ] as const
) {
  Deno.test(`a chunk table tells chunks apart that differ only in the ${part}`, () => {
    const records = recordsFrom(0, part);
    const find = createChunkTable(records);
    const others = recordsFrom(COUNT, part);
    for (let nth = 0; nth < COUNT; nth++) {
      const at = nth * RECORD_BYTES;
      assertEquals(find(viewOf(records), at), nth);
      assertEquals(find(viewOf(others), at), -1);
    }
  });
}

Deno.test("a chunk table finds the first of equal chunks", () => {
  const records = new Uint8Array(3 * RECORD_BYTES).fill(1, RECORD_BYTES);
  const find = createChunkTable(records);
  const view = viewOf(records);
  const found = [0, 1, 2].map((nth) => find(view, nth * RECORD_BYTES));
  assertEquals(found, [0, 1, 1]);
});
