import { assertEquals } from "@std/assert";
import { RECORD_BYTES } from "../../lib/delta/chunker.ts";
import { createChunkMatcher } from "../../lib/delta/update_plan.ts";

const COUNT = 1000;
const CHUNK_BYTES = 64 * 1024;
const SIZE = COUNT * CHUNK_BYTES;

type Half = "upper" | "lower";

/** Records whose hashes differ in one half only, the last first. */
function recordsFrom(first: number, half: Half) {
  const records = new Uint8Array(COUNT * RECORD_BYTES).fill(7);
  const view = new DataView(records.buffer);
  for (let nth = 0; nth < COUNT; nth++) {
    const at = nth * RECORD_BYTES;
    view.setUint16(at, CHUNK_BYTES - 1);
    // The last eleven bits of a hash do not count.
    const key = (first + COUNT - nth) << 11;
    view.setUint32(at + (half === "upper" ? 2 : 6), key);
  }
  return records;
}

function matcherOf(records: Uint8Array<ArrayBuffer>) {
  return createChunkMatcher({ size: SIZE, digest: "", records });
}

for (const half of ["upper", "lower"] as const) {
  Deno.test(`createChunkMatcher() tells chunks apart that differ only in the ${half} half of the hash`, () => {
    const matcher = matcherOf(recordsFrom(0, half));
    assertEquals(matcher.add(recordsFrom(COUNT, half)), SIZE);
    assertEquals(matcher.plan(), []);
    assertEquals(matcher.add(recordsFrom(0, half)), 2 * SIZE);
    assertEquals(matcher.plan(), [{ at: 0, from: SIZE, length: SIZE }]);
  });
}

Deno.test("createChunkMatcher() copies equal chunks from the first one", () => {
  const records = recordsFrom(0, "lower");
  records.copyWithin(3 * RECORD_BYTES, 0, RECORD_BYTES);
  const matcher = matcherOf(records);
  matcher.add(records);
  const [first, third, rest] = matcher.plan();
  const before = { at: 0, from: 0, length: 3 * CHUNK_BYTES };
  assertEquals(first, before);
  assertEquals(third, { at: before.length, from: 0, length: CHUNK_BYTES });
  const at = 4 * CHUNK_BYTES;
  assertEquals(rest, { at, from: at, length: SIZE - at });
});
