import { assertEquals } from "@std/assert";
import { zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { firstFrame } from "../../lib/image/_zstd_frame.ts";

const MAGIC = [0x28, 0xb5, 0x2f, 0xfd];
/** A block: its kind, whether it is the last, and its size as it is written. */
function block(kind: number, last: boolean, size: number): number[] {
  const header = size << 3 | kind << 1 | Number(last);
  const there = kind === 1 ? 1 : size;
  return [
    header & 0xff,
    header >> 8 & 0xff,
    header >> 16,
    ...new Array(there).fill(0xaa),
  ];
}

/** Checks that a frame ends where it does, with and without what follows it. */
function ends(frame: number[], name: string) {
  for (const more of [[], [0], [...frame, 1, 2, 3]]) {
    const bytes = new Uint8Array([...frame, ...more]);
    assertEquals(firstFrame(bytes), new Uint8Array(frame), name);
    // Also where the bytes are a part of others.
    const within = new Uint8Array([9, ...bytes]).subarray(1);
    assertEquals(firstFrame(within), new Uint8Array(frame), name);
  }
}

Deno.test("a frame ends behind its last block, whatever its header has", () => {
  const last = block(0, true, 3);
  const zeros = (count: number) => new Array(count).fill(0);
  // The flags, and how many bytes of header they announce.
  const headers: [number, number][] = [
    [0b0000_0000, 1],
    [0b0010_0000, 1],
    [0b0000_0001, 1 + 1],
    [0b0000_0010, 1 + 2],
    [0b0000_0011, 1 + 4],
    [0b0010_0011, 1 + 4],
    [0b0100_0000, 1 + 2],
    [0b0110_0000, 2],
    [0b1000_0000, 1 + 4],
    [0b1010_0000, 4],
    [0b1100_0000, 1 + 8],
    [0b1110_0001, 8 + 1],
  ];
  for (const [flags, length] of headers) {
    const name = flags.toString(2);
    ends([...MAGIC, flags, ...zeros(length), ...last], name);
    // A checksum of four bytes comes last.
    const checked = [
      ...MAGIC,
      flags | 4,
      ...zeros(length),
      ...last,
      1,
      2,
      3,
      4,
    ];
    ends(checked, `${name}, with a checksum`);
  }
});

Deno.test("blocks are followed by their sizes, repeated bytes by theirs", () => {
  const header = [...MAGIC, 0x20, 7];
  ends([...header, ...block(0, true, 0)], "empty");
  ends([...header, ...block(1, true, 100)], "repeated");
  ends([...header, ...block(2, true, 100)], "compressed");
  const blocks = [
    ...block(0, false, 300),
    ...block(1, false, 70_000),
    ...block(2, false, 70_000),
    ...block(0, true, 2),
  ];
  ends([...header, ...blocks], "several");
});

Deno.test("what is no frame, or is cut off, is left as it is", () => {
  const frame = [...MAGIC, 0x20, 7, ...block(0, false, 3)];
  const cases = [
    [],
    MAGIC,
    [...MAGIC, 0x20],
    frame,
    [...frame, 1, 0],
    [...frame, ...block(0, false, 3)],
    [0, ...frame.slice(1), ...block(0, true, 3), 5, 5],
  ];
  for (const bytes of cases) {
    assertEquals(firstFrame(new Uint8Array(bytes)), new Uint8Array(bytes));
  }
  // The shortest that there is: a header, and an empty block in the last bytes.
  ends([...MAGIC, 0x20, 0, 1, 0, 0], "shortest");
});

Deno.test("a frame that zstd has written is told from what follows it", () => {
  for (const length of [0, 1, 300, 70_000, 300_000]) {
    const data = new Uint8Array(length).map((_, at) => at * at >> 7);
    const frame = new Uint8Array(zstdCompressSync(data));
    ends([...frame], `${length}`);
    const found = firstFrame(new Uint8Array([...frame, ...frame]));
    assertEquals(new Uint8Array(zstdDecompressSync(found)), data);
  }
});
