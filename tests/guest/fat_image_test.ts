/**
 * Checks the bytes of a small FAT image against Microsoft's specification, since
 * a guest kernel reports little about a wrong one.
 */
import { assertEquals, assertThrows } from "@std/assert";
import { fatImage } from "../../lib/guest/_fat_image.ts";

const SECTOR = 512;
const TABLE = SECTOR;
const DIRECTORY = 2 * SECTOR;
const DATA = 6 * SECTOR;
const CLUSTER = 16 * SECTOR;

function hex(bytes: Uint8Array, from: number, length: number): string {
  return Array.from(
    bytes.subarray(from, from + length),
    (byte) => byte.toString(16).padStart(2, "0"),
  ).join("");
}

function text(bytes: Uint8Array, from: number, length: number): string {
  return new TextDecoder("latin1").decode(bytes.subarray(from, from + length));
}

const FILES = {
  "meta-data": "a".repeat(SECTOR + 1),
  "thirteen-long": "b".repeat(CLUSTER),
  "fourteen--long": "c",
};

Deno.test("fatImage() writes a boot sector that describes the file system", () => {
  const image = fatImage("LABEL", FILES);
  assertEquals(image.length, DATA + 3 * CLUSTER);
  const fields: [from: number, hex: string][] = [
    [0, "eb3c90"], // a jump over the fields
    [11, "0002"], // bytes of a sector
    [13, "10"], // sectors of a cluster
    [14, "0100"], // sectors before the table
    [16, "01"], // tables
    [17, "4000"], // entries of the directory
    [19, "3600"], // sectors of all
    [21, "f8"], // a fixed disk
    [22, "0100"], // sectors of a table
    [24, "20000200"], // sectors of a track, and heads
    [28, "0000000000000000"], // hidden sectors, and sectors beyond 65535
    [36, "800029"], // drive; the next three fields are there
    [39, "01400570"], // serial number
    [62, "00".repeat(448)], // no program
    [510, "55aa"],
  ];
  for (const [from, expected] of fields) {
    assertEquals(hex(image, from, expected.length / 2), expected, `at ${from}`);
  }
  assertEquals(text(image, 3, 8), "TOOLSMTH");
  assertEquals(text(image, 43, 11), "LABEL      ");
  assertEquals(text(image, 54, 8), "FAT12   ");
});

Deno.test("fatImage() writes long-name entries in reverse order before the short name", () => {
  const image = fatImage("LABEL", FILES);
  const entries = Array.from(
    { length: 64 },
    (_, index) => hex(image, DIRECTORY + index * 32, 32),
  );
  const ascii = (text: string) =>
    hex(new TextEncoder().encode(text), 0, text.length);
  const zeros = "00".repeat(14);
  assertEquals(entries.filter((entry) => /[^0]/.test(entry)), [
    ascii("LABEL      ") + "08" + zeros + "000000000000",
    // Nine characters, then the terminating zero.
    "416d006500740061002d000f00fc64006100740061000000ffff0000ffffffff",
    ascii("FILE0      ") + "01" + zeros + "0200" + "01020000",
    // Thirteen characters fill the entry without a terminator.
    "41740068006900720074000f0010650065006e002d006c006f0000006e006700",
    ascii("FILE1      ") + "01" + zeros + "0300" + "00200000",
    "4267000000ffffffffffff0f0014ffffffffffffffffffffffff0000ffffffff",
    "0166006f007500720074000f0014650065006e002d002d006c0000006f006e00",
    ascii("FILE2      ") + "01" + zeros + "0400" + "01000000",
  ]);
  assertEquals(entries.findLastIndex((entry) => /[^0]/.test(entry)), 7);
});

Deno.test("fatImage() stores each file in a cluster of its own, and zeros after it", () => {
  const image = fatImage("LABEL", FILES);
  assertEquals(hex(image, TABLE, SECTOR), "f8" + "ff".repeat(SECTOR - 1));
  for (const [index, content] of Object.values(FILES).entries()) {
    const stored = text(image, DATA + index * CLUSTER, CLUSTER);
    assertEquals(stored, content.padEnd(CLUSTER, "\0"));
  }
  assertEquals(fatImage("LABEL", FILES), image);
});

Deno.test("fatImage() rejects a file that does not fit into a cluster", () => {
  const files = { big: "x".repeat(CLUSTER + 1), small: "y" };
  assertThrows(() => fatImage("LABEL", files), RangeError, "big is too big");
});
