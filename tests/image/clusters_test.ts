import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { sampleClusters } from "../../lib/image/qcow2.ts";
import { temporaryDir } from "../support/directory.ts";
import { qcow2, writeImage } from "../support/qcow2.ts";

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
    plain: [2048, 2560, 3072, 2560],
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
