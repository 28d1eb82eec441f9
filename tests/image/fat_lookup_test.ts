import { assertEquals } from "@std/assert";
import { fatHasFile } from "../../lib/image/_fat_lookup.ts";
import {
  DIRECTORY_ATTRIBUTE,
  FatFileSystem,
  type FatShape,
  putBootLoaders,
  SparseDisk,
} from "../support/fat.ts";

const LOADER = ["EFI", "BOOT", "BOOTX64.EFI"];
const NAME = "BOOTX64 EFI";

/** A disk with a FAT file system, and a lookup in it. */
function disk(shape: FatShape = {}) {
  const bytes = new SparseDisk();
  const fat = new FatFileSystem(bytes, shape);
  const has = (...path: string[]) => fatHasFile(bytes, shape.start ?? 0, path);
  return { bytes, fat, has };
}

Deno.test("FAT lookup: finds a file in FAT12, FAT16 and FAT32, up to their cluster limits", async () => {
  // FAT12 has at most 4084 clusters, FAT16 at most 65524.
  for (const clusters of [8, 4084, 4085, 65524, 65525]) {
    for (const start of [0, 1024 * 1024]) {
      const { fat, has } = disk({ start, clusters });
      putBootLoaders(fat, [NAME], clusters === 65525 ? 2 : 0);
      assertEquals(await has(...LOADER), true, `${clusters}`);
      assertEquals(await has("EFI", "BOOT", "BOOTAA64.EFI"), false);
    }
    assertEquals(await chained(clusters, [9, 4, 7]), true, `${clusters}`);
  }
});

Deno.test("FAT lookup: finds a file for any sector, cluster and table size", async () => {
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
    putBootLoaders(fat, [NAME], shape.clusters === 65525 ? 2 : 0);
    assertEquals(await has(...LOADER), true, JSON.stringify(shape));
  }
});

Deno.test("FAT lookup: finds no file on a disk without a valid FAT file system", async () => {
  const fields: [number, number, number][] = [
    [510, 0xaa54, 2],
    [11, 0, 2],
    [11, 256, 2],
    [11, 513, 2],
    [11, 8192, 2],
    [13, 0, 1],
    [13, 3, 1],
    [14, 0, 2],
    // No cluster: the tables and the root directory fill the disk or exceed it.
    [19, 5, 2],
    [19, 4, 2],
  ];
  for (const [offset, value, length] of fields) {
    const { fat, has } = disk();
    putBootLoaders(fat, [NAME]);
    fat.field(offset, value, length);
    assertEquals(await has(...LOADER), false, `${offset}: ${value}`);
    // Not even the root directory is found.
    assertEquals(await has(), false);
  }
  const { has } = disk({ clusters: 1 });
  assertEquals(await has(), true);
});

Deno.test("FAT lookup: a directory does not match a file name, nor a file a directory name", async () => {
  const { fat, has } = disk();
  fat.entry(0, 0, { name: "EFI", attributes: DIRECTORY_ATTRIBUTE, cluster: 5 });
  fat.entry(5, 0, { name: "BOOT", cluster: 6 });
  fat.entry(6, 0, { name: NAME });
  assertEquals(await has("EFI"), false);
  assertEquals(await has(...LOADER), false);
  assertEquals(await has("EFI", "BOOT"), true);
});

Deno.test("FAT lookup: skips labels, long names and deleted entries, and stops at an empty entry", async () => {
  const { fat, has } = disk({ rootEntries: 16 });
  const LABEL = 0x08;
  const LONG_NAME = 0x0f;
  fat.entry(0, 0, { name: "LABEL", attributes: LABEL });
  fat.entry(0, 1, { name: "LONG", attributes: LONG_NAME });
  fat.entry(0, 2, { name: "\xe5GONE" });
  fat.entry(0, 3, { name: "A.B" });
  fat.entry(0, 4, { name: "THERE   TXT", attributes: 0x27 });
  fat.entry(0, 6, { name: "BEHIND" });
  for (const name of ["LABEL", "LONG", "GONE", "BEHIND", "THERE"]) {
    assertEquals(await has(name), false, name);
  }
  assertEquals(await has("THERE.TXT"), true);
});

Deno.test("FAT lookup: stops at the end of a full root directory", async () => {
  const { fat, has } = disk({ rootEntries: 16 });
  fat.removed(0, 15);
  fat.entry(0, 15, { name: "LAST" });
  // The first cluster follows the root directory.
  fat.entry(2, 0, { name: "NEXT" });
  assertEquals([await has("LAST"), await has("NEXT")], [true, false]);
});

/** Looks up a file in the last of a directory's clusters, chained in this order. */
async function chained(clusters: number, order: number[]) {
  const { fat, has } = disk({ clusters });
  const top = clusters < 65525 ? 0 : 2;
  fat.entry(top, 0, {
    name: "DIR",
    attributes: DIRECTORY_ATTRIBUTE,
    cluster: order[0],
  });
  order.forEach((cluster, nth) => {
    fat.removed(cluster, 16);
    if (nth > 0) fat.follow(order[nth - 1], cluster);
  });
  fat.entry(order[order.length - 1], 15, { name: "FILE" });
  return await has("DIR", "FILE");
}

Deno.test("FAT lookup: follows the cluster chain of a directory, for odd and even clusters", async () => {
  for (const order of [[9, 4, 7], [4, 9, 101], [10, 12, 3], [11, 5, 2]]) {
    for (const clusters of [100, 5000, 65545]) {
      // Cluster 2 is the root directory of FAT32.
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

Deno.test("FAT lookup: stops at a cluster number outside the file system", async () => {
  // 100 clusters have the numbers 2 to 101.
  assertEquals(await chained(100, [9, 101]), true);
  for (const outside of [0, 1, 102, 0xff8]) {
    assertEquals(await chained(100, [9, outside]), false, `${outside}`);
  }
});

Deno.test("FAT lookup: reads at most 64 KiB of a directory", async () => {
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
    // A single cluster may exceed the limit.
    const large = disk({ sectorSize: 4096, sectorsPerCluster: 128 });
    large.fat.entry(0, 0, {
      name: "D",
      attributes: DIRECTORY_ATTRIBUTE,
      cluster: 4,
    });
    large.fat.removed(4, nth);
    large.fat.entry(4, nth, { name: "FILE" });
    assertEquals(await large.has("D", "FILE"), expected, `cluster, ${nth}`);
  }
});

Deno.test("FAT lookup: reads 64 KiB of a directory whose clusters form a cycle", async () => {
  const { bytes, fat, has } = disk({ sectorsPerCluster: 64 });
  fat.entry(0, 0, { name: "DIR", attributes: DIRECTORY_ATTRIBUTE, cluster: 4 });
  fat.removed(4, 1024);
  fat.follow(4, 4);
  assertEquals(await has("DIR", "FILE"), false);
  // Boot sector, root directory, and twice a cluster and its table entry.
  assertEquals(bytes.reads, 2 + 2 * 2);
});
