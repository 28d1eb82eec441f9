import { assertEquals } from "@std/assert";
import { zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { firstZstdFrame } from "../../lib/image/_qcow2_disk.ts";

const MAGIC = [0x28, 0xb5, 0x2f, 0xfd];
/** A Zstandard block with a type, last-block flag and size field. */
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

/** Asserts that the frame is found, with and without following bytes. */
function ends(frame: number[], name: string) {
  for (const more of [[], [0], [...frame, 1, 2, 3]]) {
    const bytes = new Uint8Array([...frame, ...more]);
    assertEquals(firstZstdFrame(bytes), new Uint8Array(frame), name);
    // The bytes may be a view into a larger buffer.
    const within = new Uint8Array([9, ...bytes]).subarray(1);
    assertEquals(firstZstdFrame(within), new Uint8Array(frame), name);
  }
}

Deno.test("firstZstdFrame() finds the end of a frame for every header form", () => {
  const last = block(0, true, 3);
  const zeros = (count: number) => new Array(count).fill(0);
  // Flags, and the header bytes that they imply.
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
    // A checksum of four bytes follows.
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

Deno.test("firstZstdFrame() skips raw, RLE and compressed blocks by their sizes", () => {
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

Deno.test("firstZstdFrame() returns all bytes if they are no frame or a truncated one", () => {
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
    assertEquals(firstZstdFrame(new Uint8Array(bytes)), new Uint8Array(bytes));
  }
  // The shortest frame: a header and an empty block.
  ends([...MAGIC, 0x20, 0, 1, 0, 0], "shortest");
});

Deno.test("firstZstdFrame() separates a real zstd frame from the bytes after it", () => {
  for (const length of [0, 1, 300, 70_000, 300_000]) {
    const data = new Uint8Array(length).map((_, at) => at * at >> 7);
    const frame = new Uint8Array(zstdCompressSync(data));
    ends([...frame], `${length}`);
    const found = firstZstdFrame(new Uint8Array([...frame, ...frame]));
    assertEquals(new Uint8Array(zstdDecompressSync(found)), data);
  }
});
