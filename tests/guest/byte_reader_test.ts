import { assertEquals, assertThrows } from "@std/assert";
import { byteReader } from "../../lib/guest/_byte_reader.ts";

/** Sends chunks in one buffer that is used again, and notes when it is stopped. */
function sender(...chunks: number[][]) {
  let stopped = false;
  const counts: number[] = [];
  async function* send() {
    const buffer = new Uint8Array(16);
    try {
      for (const chunk of chunks) {
        buffer.set(chunk);
        yield buffer.subarray(0, chunk.length);
        buffer.fill(0xff);
      }
    } finally {
      stopped = true;
    }
  }
  const reader = byteReader(send(), (count) => counts.push(count));
  return { reader, counts, stopped: () => stopped };
}

Deno.test("chunks of any length are read as stretches of any length", async () => {
  const { reader, counts } = sender([1, 2, 3], [], [4, 5], [6, 7, 8, 9]);
  assertEquals(reader.position, 0);
  assertEquals(await reader.exactly(2), new Uint8Array([1, 2]));
  assertEquals([reader.position, counts], [2, [3]]);
  assertEquals(await reader.exactly(4), new Uint8Array([3, 4, 5, 6]));
  assertEquals([reader.position, counts], [6, [3, 3, 5, 9]]);
  assertEquals(await reader.exactly(0), new Uint8Array());
  assertEquals(await reader.skip(2), true);
  assertEquals(reader.position, 8);
  assertEquals(await reader.exactly(1), new Uint8Array([9]));
  assertEquals(await reader.exactly(1), undefined);
  assertEquals([await reader.skip(0), await reader.skip(1)], [true, false]);
  assertEquals(reader.position, 9);
});

Deno.test("a stretch comes in pieces as it is there, and no more than was asked for", async () => {
  const { reader } = sender([1, 2, 3], [4, 5, 6]);
  const pieces = await Array.fromAsync(reader.take(4));
  assertEquals(pieces, [new Uint8Array([1, 2, 3]), new Uint8Array([4])]);
  assertEquals(await Array.fromAsync(reader.take(9)), [new Uint8Array([5, 6])]);
});

Deno.test("what is left is passed over, and a sender of more is stopped", async () => {
  const all = sender([1, 2], [3]);
  await all.reader.drain();
  assertEquals([all.reader.position, all.stopped()], [3, true]);
  const early = sender([1, 2], [3]);
  await early.reader.exactly(1);
  assertEquals(early.stopped(), false);
  await early.reader.close();
  assertEquals([early.stopped(), early.counts], [true, [2]]);
});

Deno.test("who counts the bytes may end the reading", async () => {
  async function* send() {
    yield new Uint8Array(3);
  }
  const reader = byteReader(send(), () => {
    throw new RangeError("too much");
  });
  const error = await reader.exactly(1).catch((error) => error);
  assertThrows(
    () => {
      throw error;
    },
    RangeError,
    "too much",
  );
  assertEquals(reader.position, 0);
});
