import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { sampleClusters } from "../../lib/image/qcow2.ts";
import { temporaryDir } from "../support/directory.ts";
import { countReads } from "../support/file_reads.ts";
import { dataOffset, qcow2, writeImage } from "../support/qcow2.ts";

/** Runs one test with the path of an image. */
function test(name: string, body: (path: string) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    await body(join(dir.path, "a.qcow2"));
  });
}

test("how clusters are stored is counted, entry by entry", async (path) => {
  const packed = 1n << 62n | 1n << 61n | 2048n;
  const tables = [[2048n, 0n, 2560n | 1n << 63n, packed], [
    3072n,
    packed,
    99999n,
  ]];
  const data = new Uint8Array(1024 + 512);
  // The last entry of a table counts, too; behind the first table there is none.
  tables[1][63] = 2560n;
  const image = qcow2({
    tables: tables.map((it) => Array.from(it, (n) => n ?? 0n)),
    data,
  });
  image.setBigUint64(512 + 2 * 8, 1024n);
  await writeImage(path, image);
  assertEquals(await sampleClusters(path), {
    seen: 1,
    // Where the file has ended there is none.
    plain: [2048, 2560, 3072],
    compressed: 2,
    compressedBytes: 2 * 1024,
    tableBytes: 2 * 512 + 2 * 8,
  });
  const half = await sampleClusters(path, 1);
  assertEquals([half.seen, half.plain, half.compressed], [
    0.5,
    [2048, 2560],
    1,
  ]);
  // An entry of 16 bytes is one, whose second half is a map of its parts.
  const wide = {
    features: 16n,
    tables: [[1536n, 2048n, 0n, 2048n, 2048n, 1n]],
  };
  await writeImage(path, qcow2({ ...wide, data }));
  assertEquals((await sampleClusters(path)).plain, [1536, 2048]);
});

test("tables that are nowhere in the file are not looked at", async (path) => {
  const image = qcow2({ tables: [[1536n], [1536n]] });
  await writeImage(path, image);
  image.setBigUint64(512, 0n);
  image.setBigUint64(520, BigInt(image.byteLength));
  await writeImage(path, image);
  const found = await sampleClusters(path);
  assertEquals([found.seen, found.plain, found.tableBytes], [1, [], 16]);
});

test("sampleClusters reads a table once and counts a cluster once, whatever leads there", async (path) => {
  const clusterBits = 16;
  const size = 2 ** clusterBits;
  const shape = { clusterBits, tables: [[]] };
  const at = BigInt(dataOffset(shape));
  const tables = [new Array(size / 8).fill(at)];
  const image = qcow2({ ...shape, tables, data: new Uint8Array(size) });
  // Each of its 8192 entries leads to the one second table.
  image.setUint32(36, size / 8);
  for (let entry = 0; entry < size / 8; entry++) {
    image.setBigUint64(size + entry * 8, BigInt(2 * size));
  }
  await writeImage(path, image);
  using reads = countReads();
  const { seen, plain, tableBytes } = await sampleClusters(path);
  assertEquals([seen, plain.length, plain[0]], [1, 1, Number(at)]);
  assertEquals(tableBytes, size + size);
  // The header, the first table, the second.
  assertEquals(reads.bytes, 3 * size);
});

test("sampleClusters ignores tables and clusters that overlap others", async (path) => {
  const clusterBits = 16;
  const size = 2 ** clusterBits;
  const at = dataOffset({ clusterBits, tables: [[]] });
  const clusters = [at, at + 512, at - 512, at + size / 2].map(BigInt);
  const data = new Uint8Array(2 * size);
  const image = qcow2({ clusterBits, tables: [clusters], data });
  image.setUint32(36, 128);
  for (let entry = 1; entry < 128; entry++) {
    image.setBigUint64(size + entry * 8, BigInt(2 * size + entry * 512));
  }
  await writeImage(path, image);
  using reads = countReads();
  const { seen, plain } = await sampleClusters(path);
  assertEquals([seen, plain], [1, [at]]);
  assertEquals(reads.bytes, size + 128 * 8 + size);
});

test("sampleClusters reads 16 MiB of tables at most", async (path) => {
  const clusterBits = 21;
  const tables = [[], ...new Array(8).fill([])];
  await writeImage(path, qcow2({ clusterBits, tables }));
  using reads = countReads();
  // Every other one.
  assertEquals((await sampleClusters(path)).seen, 5 / 9);
  assertEquals(reads.bytes, 65_536 + 9 * 8 + 5 * 2 ** clusterBits);
});
