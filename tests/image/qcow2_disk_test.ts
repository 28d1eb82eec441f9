import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { deflateRawSync, zstdCompressSync } from "node:zlib";
import { openQcow2Disk } from "../../lib/image/_qcow2_disk.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { countReads } from "../support/file_reads.ts";
import {
  dataOffset,
  makeQcow2,
  type Qcow2Parts,
  writeImage,
} from "../support/qcow2.ts";

const CLUSTER = 512;
const COMPRESSED = 1n << 62n;

/** Runs one test with the path of an image. */
function test(name: string, body: (path: string) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    await body(join(dir.path, "a.qcow2"));
  });
}

/** Incompressible bytes. */
function noise(length: number): Uint8Array<ArrayBuffer> {
  return crypto.getRandomValues(new Uint8Array(length));
}

function filled(byte: number, length = CLUSTER): Uint8Array<ArrayBuffer> {
  return new Uint8Array(length).fill(byte);
}

function joined(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  return new Uint8Array(parts.flatMap((part) => [...part]));
}

/** Reads bytes of the disk. */
async function readPart(
  path: string,
  [offset, length]: [number, number],
): Promise<Uint8Array> {
  using disk = await openQcow2Disk(path);
  const { buffer, byteOffset, byteLength } = await disk.read(offset, length);
  assertEquals([byteOffset, byteLength], [0, length]);
  return new Uint8Array(buffer);
}

test("QCOW2 disk: joins clusters, and returns zeros for unallocated ones", async (path) => {
  const data = noise(2 * CLUSTER);
  const at = BigInt(dataOffset({ tables: [[], []] }));
  const tables = [[at, 0n, at + 512n, at], [at + 512n]];
  const image = makeQcow2({ tables, data, size: 64 * CLUSTER + 100 });
  await writeImage(path, image);
  const [a, b] = [data.slice(0, CLUSTER), data.slice(CLUSTER)];
  const disk = new Uint8Array(66 * CLUSTER);
  [a, filled(0), b, a].forEach((part, nth) => disk.set(part, nth * CLUSTER));
  // The disk ends within the second L2 table's first cluster.
  disk.set(b.subarray(0, 100), 64 * CLUSTER);
  const places: [number, number][] = [
    [0, 4 * CLUSTER],
    [0, 0],
    [0, 1],
    [10, CLUSTER],
    [CLUSTER - 1, 2],
    [3 * CLUSTER + 7, CLUSTER - 7],
    [64 * CLUSTER - 1, 300],
    [65 * CLUSTER, 10],
    [64 * CLUSTER + 100, 10],
  ];
  for (const [from, length] of places) {
    const expected = disk.slice(from, from + length);
    assertEquals(await readPart(path, [from, length]), expected, `${from}`);
  }
});

test("QCOW2 disk: returns zeros where the L1 table has no L2 table", async (path) => {
  const tables = [[BigInt(dataOffset({}))]];
  const image = makeQcow2({ tables, data: filled(7) });
  image.setBigUint64(CLUSTER, 0n);
  await writeImage(path, image);
  assertEquals(await readPart(path, [0, 2 * CLUSTER]), filled(0, 2 * CLUSTER));
});

test("QCOW2 disk: honors the zero-cluster bit", async (path) => {
  const tables = [[BigInt(dataOffset({})) | 1n]];
  await writeImage(path, makeQcow2({ tables, data: filled(7) }));
  assertEquals(await readPart(path, [0, CLUSTER]), filled(0));
});

test("QCOW2 disk: reads only the subclusters that the bitmap marks as allocated", async (path) => {
  const clusterBits = 14;
  const size = 2 ** clusterBits;
  const parts: Qcow2Parts = { clusterBits, features: 16n };
  const at = BigInt(dataOffset({ ...parts, tables: [[]] }));
  // Bit 0 has no meaning here; subclusters 1, 2 and 31 are allocated.
  const map = 1n << 1n | 1n << 2n | 1n << 31n;
  const tables = [[0n, 0n, at | 1n, map]];
  await writeImage(
    path,
    makeQcow2({ ...parts, tables, data: filled(7, size) }),
  );
  const part = size / 32;
  const expected = new Uint8Array(2 * size);
  for (const nth of [1, 2, 31]) {
    expected.fill(7, size + nth * part, size + (nth + 1) * part);
  }
  assertEquals(await readPart(path, [0, 2 * size]), expected);
  for (
    const [from, length] of [[part - 5, part + 10], [3 * part - 1, 2], [
      3 * part + 3,
      9,
    ]]
  ) {
    const got = await readPart(path, [size + from, length]);
    assertEquals(got, expected.slice(size + from, size + from + length));
  }
});

test("QCOW2 disk: reports an image truncated in a cluster or table", async (path) => {
  const at = dataOffset({});
  const read = () => readPart(path, [0, 4]);
  const cases: [bigint, Uint8Array<ArrayBuffer> | undefined][] = [
    [BigInt(at), filled(7)],
    // The end of the last cluster may be missing.
    [BigInt(at), filled(7, 2)],
    [BigInt(at), undefined],
    [BigInt(at + 512), undefined],
  ];
  for (const [entry, data] of cases) {
    await writeImage(path, makeQcow2({ tables: [[entry]], data }));
    if (data) {
      const expected = filled(7, 4).fill(0, data.length);
      assertEquals(await read(), expected);
      continue;
    }
    const { message, hint } = await expectFailure("image_invalid", read);
    assertEquals(message, `${path} is truncated`);
    assertEquals(
      hint,
      "check the image: qemu-img check IMAGE",
    );
  }
  // The file ends after the first entry of the L2 table.
  const image = makeQcow2({ tables: [[]] });
  await writeImage(path, image, 1024 + 8);
  assertEquals(await read(), filled(0, 4));
  await writeImage(path, image, 1024 + 7);
  assertEquals(
    (await expectFailure("image_invalid", read)).message,
    `${path} is truncated`,
  );
});

test("QCOW2 disk: reports an image that is truncated while open", async (path) => {
  await writeImage(path, makeQcow2({}));
  using disk = await openQcow2Disk(path);
  assertEquals((await disk.read(0, 1)).getUint8(0), 0);
  await Deno.truncate(path, 512 + 7);
  const { message } = await expectFailure(
    "image_invalid",
    () => disk.read(0, 1),
  );
  assertEquals(message, `${path} is truncated`);
});

/** Writes an image of adjacent compressed clusters. */
async function writePacked(
  path: string,
  packed: Uint8Array[],
  parts: Qcow2Parts = {},
) {
  const { clusterBits = 9 } = parts;
  const sectorsShift = BigInt(62 - (clusterBits - 8));
  let at = dataOffset({ clusterBits });
  const table = packed.map((bytes) => {
    const sectors = Math.floor((at + bytes.length - 1) / 512) -
      Math.floor(at / 512);
    const entry = COMPRESSED | BigInt(sectors) << sectorsShift | BigInt(at);
    at += bytes.length;
    return entry;
  });
  const data = joined(...packed);
  const image = makeQcow2({ ...parts, tables: [table], data });
  return await writeImage(path, image);
}

test("QCOW2 disk: reads adjacent zlib and zstd clusters of any size", async (path) => {
  const methods = [
    [deflateRawSync, { features: 0n }],
    [zstdCompressSync, { features: 8n, compression: 1 }],
  ] as const;
  // zlib decompresses in chunks of 16 KiB.
  for (const clusterBits of [9, 14, 16]) {
    const size = 2 ** clusterBits;
    const clusters = [1, 2].map((byte) => filled(byte, size));
    clusters.push(noise(size), filled(3, size));
    for (const [pack, parts] of methods) {
      const packed = clusters.map((bytes) => new Uint8Array(pack(bytes)));
      await writePacked(path, packed, { ...parts, clusterBits });
      using disk = await openQcow2Disk(path);
      // Repeated and partial reads: decompressed clusters are cached.
      for (const nth of [0, 0, 2, 1, 1, 3, 0]) {
        const { buffer } = await disk.read(nth * size, size);
        assertEquals(new Uint8Array(buffer), clusters[nth]);
        const part = await disk.read(nth * size + 100, 7);
        assertEquals(
          new Uint8Array(part.buffer),
          clusters[nth].slice(100, 107),
        );
      }
    }
  }
});

test("QCOW2 disk: decompresses each cluster once", async (path) => {
  const packed = [filled(1), filled(2), filled(3), noise(CLUSTER)]
    .map((bytes) => new Uint8Array(deflateRawSync(bytes)));
  await writePacked(path, packed);
  using disk = await openQcow2Disk(path);
  const readAll = async () => {
    for (const nth of [0, 1, 2]) await disk.read(nth * CLUSTER, CLUSTER);
  };
  using reads = countReads();
  await readAll();
  // L1 entry, L2 entry and the cluster.
  assertEquals(reads.calls, 3 * 3);
  await readAll();
  assertEquals(reads.calls, 3 * 3 + 3 * 2);
});

test("QCOW2 disk: decompresses at most 64 MiB of clusters", async (path) => {
  const clusterBits = 21;
  const size = 2 ** clusterBits;
  const packed = new Uint8Array(deflateRawSync(filled(7, size)));
  const start = dataOffset({ clusterBits });
  const sectors = BigInt(Math.ceil(packed.length / 512));
  const entry = (at: number) =>
    COMPRESSED | sectors << BigInt(62 - (clusterBits - 8)) | BigInt(at);
  const place = (nth: number) => start + nth * packed.length;
  const distinct = Array.from({ length: 33 }, (_, nth) => entry(place(nth)));
  // The last entry refers to the first cluster again.
  const tables = [[...distinct, entry(place(0))]];
  const data = joined(...distinct.map(() => packed));
  await writeImage(path, makeQcow2({ clusterBits, tables, data }));
  using disk = await openQcow2Disk(path);
  const read = async (nth: number) =>
    (await disk.read(nth * size + 9, 1)).getUint8(0);
  for (let nth = 0; nth < 32; nth++) assertEquals(await read(nth), 7);
  const { message } = await expectFailure("image_invalid", () => read(32));
  assertEquals(message, `${path} has too many compressed clusters to inspect`);
  assertEquals(await read(33), 7);
});

test("QCOW2 disk: rejects a compressed cluster that is damaged or has the wrong size", async (path) => {
  const cases: [Uint8Array, object?][] = [
    [deflateRawSync(filled(1, CLUSTER - 1))],
    [deflateRawSync(filled(1, CLUSTER + 1))],
    [filled(0xff, 100)],
    [zstdCompressSync(filled(1, CLUSTER + 1)), {
      features: 8n,
      compression: 1,
    }],
    [deflateRawSync(filled(1)), { features: 8n, compression: 1 }],
  ];
  for (const [packed, parts] of cases) {
    await writePacked(path, [packed], parts);
    const read = () => readPart(path, [0, 1]);
    const { message } = await expectFailure("image_invalid", read);
    assertEquals(message, `${path} has a damaged cluster`);
  }
});

test("QCOW2 disk: stops decompressing a cluster that is too large", async (path) => {
  const bomb = filled(1, 100 * CLUSTER);
  const zstd = { features: 8n, compression: 1 };
  const cases = [[deflateRawSync(bomb)], [zstdCompressSync(bomb), zstd]];
  for (const [packed, parts] of cases as [Uint8Array, object?][]) {
    await writePacked(path, [packed], parts);
    const read = () => readPart(path, [0, 1]);
    const { cause } = await expectFailure("image_invalid", read);
    assertEquals((cause as { code?: string }).code, "ERR_BUFFER_TOO_LARGE");
  }
});

test("openQcow2Disk() closes the file of an encrypted or dependent image", async (path) => {
  const image = makeQcow2({});
  image.setUint32(32, 2);
  await writeImage(path, image);
  const { message } = await expectFailure(
    "image_invalid",
    () => openQcow2Disk(path),
  );
  assertEquals(
    message,
    `${path} is encrypted (luks): Toolsmith boots only unencrypted images`,
  );
  await writeImage(path, makeQcow2({ features: 4n }));
  await expectFailure("image_unsafe", () => openQcow2Disk(path));
});
