import { assertEquals } from "@std/assert";
import { fatHasFile } from "../../lib/image/_fat.ts";
import {
  DIRECTORY,
  Fat,
  type FatShape,
  putLoaders,
  SparseDisk,
} from "../support/fat.ts";

const LOADER = ["EFI", "BOOT", "BOOTX64.EFI"];
const NAME = "BOOTX64 EFI";

/** A disk with a file system, and what tells whether it has a file. */
function disk(shape: FatShape = {}) {
  const bytes = new SparseDisk();
  const fat = new Fat(bytes, shape);
  const has = (...path: string[]) => fatHasFile(bytes, shape.start ?? 0, path);
  return { bytes, fat, has };
}

Deno.test("a file is found in each kind of FAT, up to the limits of each", async () => {
  // 4084 clusters are the most of FAT12, and 65524 of FAT16.
  for (const clusters of [8, 4084, 4085, 65524, 65525]) {
    for (const start of [0, 1024 * 1024]) {
      const { fat, has } = disk({ start, clusters });
      putLoaders(fat, [NAME], clusters === 65525 ? 2 : 0);
      assertEquals(await has(...LOADER), true, `${clusters}`);
      assertEquals(await has("EFI", "BOOT", "BOOTAA64.EFI"), false);
    }
    assertEquals(await chained(clusters, [9, 4, 7]), true, `${clusters}`);
  }
});

Deno.test("a file is found whatever the sizes of sectors, clusters and tables are", async () => {
  const shapes: FatShape[] = [
    { sectorSize: 4096 },
    { sectorSize: 1024, sectorsPerCluster: 4 },
    { sectorsPerCluster: 128 },
    { reserved: 1, tables: 1 },
    { reserved: 7, tables: 3 },
    { rootEntries: 17 },
    { rootEntries: 512, clusters: 5000 },
    { sectorsPerCluster: 2, clusters: 65525 },
  ];
  for (const shape of shapes) {
    const { fat, has } = disk(shape);
    putLoaders(fat, [NAME], shape.clusters === 65525 ? 2 : 0);
    assertEquals(await has(...LOADER), true, JSON.stringify(shape));
  }
});

Deno.test("what is no FAT has no files", async () => {
  const fields: [number, number, number][] = [
    [510, 0xaa54, 2],
    [11, 0, 2],
    [11, 256, 2],
    [11, 513, 2],
    [11, 8192, 2],
    [13, 0, 1],
    [13, 3, 1],
    [14, 0, 2],
    // No cluster: the tables and the top directory are as large, or larger.
    [19, 5, 2],
    [19, 4, 2],
  ];
  for (const [offset, value, length] of fields) {
    const { fat, has } = disk();
    putLoaders(fat, [NAME]);
    fat.field(offset, value, length);
    assertEquals(await has(...LOADER), false, `${offset}: ${value}`);
    // Not even the top is looked at.
    assertEquals(await has(), false);
  }
  const { has } = disk({ clusters: 1 });
  assertEquals(await has(), true);
});

Deno.test("a directory is no file, and a file no directory", async () => {
  const { fat, has } = disk();
  fat.entry(0, 0, { name: "EFI", attributes: DIRECTORY, cluster: 5 });
  fat.entry(5, 0, { name: "BOOT", cluster: 6 });
  fat.entry(6, 0, { name: NAME });
  assertEquals(await has("EFI"), false);
  assertEquals(await has(...LOADER), false);
  assertEquals(await has("EFI", "BOOT"), true);
});

Deno.test("labels, long names and what was removed are no files, and an empty entry ends a directory", async () => {
  const { fat, has } = disk({ rootEntries: 16 });
  const LABEL = 0x08;
  const LONG_NAME = 0x0f;
  fat.entry(0, 0, { name: "LABEL", attributes: LABEL });
  fat.entry(0, 1, { name: "LONG", attributes: LONG_NAME });
  fat.entry(0, 2, { name: "\xe5GONE" });
  fat.entry(0, 3, { name: "A.B" });
  fat.entry(0, 4, { name: "THERE   TXT", attributes: 0x27 });
  fat.entry(0, 6, { name: "BEHIND" });
  for (const name of ["LABEL", "LONG", "\xe5GONE", "BEHIND", "THERE"]) {
    assertEquals(await has(name), false, name);
  }
  assertEquals(await has("THERE.TXT"), true);
});

Deno.test("a full directory ends with its last entry", async () => {
  const { fat, has } = disk({ rootEntries: 16 });
  fat.removed(0, 15);
  fat.entry(0, 15, { name: "LAST" });
  // The first cluster comes right behind the top directory.
  fat.entry(2, 0, { name: "NEXT" });
  assertEquals([await has("LAST"), await has("NEXT")], [true, false]);
});

/** A directory of several clusters, in this order; the file is in the last. */
async function chained(clusters: number, order: number[]) {
  const { fat, has } = disk({ clusters });
  const top = clusters < 65525 ? 0 : 2;
  fat.entry(top, 0, { name: "DIR", attributes: DIRECTORY, cluster: order[0] });
  order.forEach((cluster, nth) => {
    fat.removed(cluster, 16);
    if (nth > 0) fat.follow(order[nth - 1], cluster);
  });
  fat.entry(order[order.length - 1], 15, { name: "FILE" });
  return await has("DIR", "FILE");
}

Deno.test("a directory goes on where the table says, for odd clusters and even ones", async () => {
  for (const order of [[9, 4, 7], [4, 9, 101], [10, 12, 3], [11, 5, 2]]) {
    for (const clusters of [100, 5000, 65545]) {
      // Cluster 2 is the top directory of FAT32.
      const there = order.map((it) => it === 2 && clusters > 65525 ? 6 : it);
      assertEquals(
        await chained(clusters, there),
        true,
        `${clusters} ${there}`,
      );
    }
  }
  assertEquals(await chained(4084, [4000, 3999, 300]), true);
  assertEquals(await chained(60_000, [0xabcd, 0x1234, 0xea00]), true);
  assertEquals(await chained(65545, [65537, 65540, 300]), true);
});

Deno.test("a directory that goes on where no cluster is has an end", async () => {
  // 100 clusters are those from 2 to 101.
  assertEquals(await chained(100, [9, 101]), true);
  for (const outside of [0, 1, 102, 0xff8]) {
    assertEquals(await chained(100, [9, outside]), false, `${outside}`);
  }
});

Deno.test("64 KiB of a directory are looked at, and no more", async () => {
  for (const [nth, expected] of [[2047, true], [2048, false]] as const) {
    const { fat, has } = disk({ rootEntries: 4096, clusters: 5000 });
    fat.removed(0, nth);
    fat.entry(0, nth, { name: "FILE" });
    assertEquals(await has("FILE"), expected, `top, ${nth}`);
    const chain = Array.from(
      { length: nth === 2047 ? 128 : 129 },
      (_, it) => it + 9,
    );
    assertEquals(await chained(5000, chain), expected, `chain, ${nth}`);
    // One cluster alone may be larger.
    const large = disk({ sectorSize: 4096, sectorsPerCluster: 128 });
    large.fat.entry(0, 0, { name: "D", attributes: DIRECTORY, cluster: 4 });
    large.fat.removed(4, nth);
    large.fat.entry(4, nth, { name: "FILE" });
    assertEquals(await large.has("D", "FILE"), expected, `cluster, ${nth}`);
  }
});

Deno.test("a directory whose clusters form a circle is read 64 KiB long", async () => {
  const { bytes, fat, has } = disk({ sectorsPerCluster: 64 });
  fat.entry(0, 0, { name: "DIR", attributes: DIRECTORY, cluster: 4 });
  fat.removed(4, 1024);
  fat.follow(4, 4);
  assertEquals(await has("DIR", "FILE"), false);
  // The first sector, the top, and twice a cluster with what follows it.
  assertEquals(bytes.reads, 2 + 2 * 2);
});
