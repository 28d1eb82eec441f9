import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { compressedClusterOffsets } from "../../lib/image/compressed_clusters.ts";
import { runProcess } from "../../lib/system/process.ts";
import { assertLinear } from "../support/assert_linear.ts";
import { requires } from "../support/parts.ts";
import { dataOffset, makeQcow2, type Qcow2Parts } from "../support/qcow2.ts";

const COMPRESSED = 1n << 62n;

async function withFile<T>(
  content: DataView | Uint8Array,
  work: (file: Deno.FsFile) => Promise<T>,
): Promise<T> {
  const path = await Deno.makeTempFile();
  try {
    const { buffer, byteOffset, byteLength } = content;
    const bytes = new Uint8Array(buffer, byteOffset, byteLength);
    await Deno.writeFile(path, bytes as Uint8Array<ArrayBuffer>);
    using file = await Deno.open(path);
    return await work(file);
  } finally {
    await Deno.remove(path);
  }
}

const offsetsIn = (content: DataView | Uint8Array) =>
  withFile(content, async (file) => [...await compressedClusterOffsets(file)]);

Deno.test("compressedClusterOffsets() returns offsets in order, of compressed clusters only", async () => {
  const data = new Uint8Array(4096);
  const start = BigInt(dataOffset({ tables: [[], []] }));
  const tables = [
    [COMPRESSED | start + 1000n, 0n, COMPRESSED | 3n << 61n | start],
    [start + 512n | 1n << 63n, COMPRESSED | start + 7n],
  ];
  assertEquals(await offsetsIn(makeQcow2({ tables, data })), [
    Number(start),
    Number(start) + 7,
    Number(start) + 1000,
  ]);
});

Deno.test("compressedClusterOffsets() reads 16-byte entries and ignores their bitmaps", async () => {
  const parts: Qcow2Parts = { features: 16n, clusterBits: 14 };
  const start = BigInt(dataOffset({ ...parts, tables: [[]] }));
  const tables = [[COMPRESSED | start, COMPRESSED | start + 1n]];
  const data = new Uint8Array(1024);
  const image = makeQcow2({ ...parts, tables, data });
  assertEquals(await offsetsIn(image), [Number(start)]);
});

for (const clusterBits of [9, 12, 16, 21]) {
  Deno.test(`compressedClusterOffsets() reads offsets of 62 bits without the sector count, with clusters of 2^${clusterBits} bytes`, async () => {
    const start = BigInt(dataOffset({ clusterBits, tables: [[]] }));
    const offsetBits = BigInt(62 - (clusterBits - 8));
    // All bits of the sector count are set; then an offset beyond any file.
    const sectors = (1n << 62n) - (1n << offsetBits);
    const beyond = (1n << offsetBits) - 1n;
    const tables = [[COMPRESSED | sectors | start + 5n, COMPRESSED | beyond]];
    const data = new Uint8Array(600);
    const image = makeQcow2({ clusterBits, tables, data });
    assertEquals(await offsetsIn(image), [Number(start) + 5]);
  });
}

Deno.test("compressedClusterOffsets() returns none for damaged tables and other files", async () => {
  const image = makeQcow2({ tables: [[COMPRESSED | 1024n]] });
  const outside = makeQcow2({ tables: [[COMPRESSED | 1024n]] });
  outside.setBigUint64(512, 1n << 55n);
  const unaligned = makeQcow2({ clusterBits: 16, tables: [[COMPRESSED | 9n]] });
  unaligned.setBigUint64(65536, BigInt(2 * 65536 + 512));
  const noL1 = makeQcow2({ tables: [[COMPRESSED | 1024n]] });
  noL1.setBigUint64(40, 1n << 60n);
  assertEquals(await offsetsIn(image), [1024]);
  for (
    const other of [
      outside,
      unaligned,
      noL1,
      new Uint8Array(),
      new TextEncoder().encode("not QCOW2"),
    ]
  ) assertEquals(await offsetsIn(other), []);
});

Deno.test("compressedClusterOffsets() reads a table once that all entries of the L1 table name", async () => {
  const reads: number[] = [];
  const image = makeQcow2({ tables: Array(60).fill([COMPRESSED | 4096n]) });
  for (let entry = 0; entry < 60; entry++) {
    image.setBigUint64(512 + 8 * entry, 1024n);
  }
  await withFile(image, async (file) => {
    const seek = file.seek.bind(file);
    file.seek = (offset, whence) => {
      reads.push(Number(offset));
      return seek(offset, whence);
    };
    assertEquals([...await compressedClusterOffsets(file)], [4096]);
  });
  assertEquals(reads.filter((offset) => offset === 1024).length, 1);
});

Deno.test("compressedClusterOffsets() reads at most 65,536 tables, and none beyond the end of the file", async () => {
  const count = 70_000;
  const image = makeQcow2({ tables: Array(count).fill([]) });
  const { byteLength } = image;
  const setTables = (from: number) => {
    for (let nth = 0; nth < count; nth++) {
      image.setBigUint64(512 + 8 * nth, BigInt(from + 512 * nth));
    }
  };
  const offsetsAndReads = async () => {
    let reads = 0;
    const found = await withFile(image, async (file) => {
      const stat = await file.stat();
      // Called before each read; many tables take seconds to read.
      file.stat = () =>
        Promise.resolve(++reads > 10 ? { ...stat, size: 0 } : stat);
      return await compressedClusterOffsets(file);
    });
    return { found: [...found], reads };
  };
  setTables(byteLength - 512);
  image.setBigUint64(byteLength - 512, COMPRESSED | 4096n);
  const { found, reads } = await offsetsAndReads();
  assertEquals(found, [4096]);
  assert(reads < 10, `${reads}`);
  setTables(512);
  const many = await offsetsAndReads();
  assert(many.reads > 65_536 && many.reads < 65_546, `${many.reads}`);
});

Deno.test("compressedClusterOffsets() takes linear time in the number of L2 tables", async () => {
  const entries = Array(64).fill(COMPRESSED | 512n);
  await assertLinear(
    "L2 tables",
    (count) => makeQcow2({ tables: Array(Math.min(count, 64)).fill(entries) }),
    offsetsIn,
    64,
  );
});

Deno.test({
  name:
    "compressedClusterOffsets() finds as many clusters as qemu-img counts, with zlib, zstd, subclusters and 2 TiB",
  ...requires("qemuImg"),
  async fn() {
    const dir = await Deno.makeTempDir();
    try {
      const raw = join(dir, "raw");
      const text = Array.from({ length: 60_000 }, (_, line) => `line ${line}`);
      await Deno.writeTextFile(raw, text.join("\n"));
      await Deno.truncate(raw, 2 ** 21);
      for (
        const options of [
          "compression_type=zlib",
          "compression_type=zstd",
          "compression_type=zstd,cluster_size=4k",
          "extended_l2=on,cluster_size=64k",
        ]
      ) {
        const path = join(dir, "image.qcow2");
        const args = ["-f", "raw", "-O", "qcow2", "-c", "-o", options];
        await run(["convert", ...args, raw, path]);
        if (!options.includes("4k")) await run(["resize", path, "2T"]);
        using file = await Deno.open(path);
        const found = await compressedClusterOffsets(file);
        const check = await run(["check", "--output=json", path]);
        const expected = JSON.parse(check)["compressed-clusters"];
        assert(expected > 5, options);
        assertEquals(found.length, expected, options);
        await Deno.remove(path);
      }
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  },
});

async function run(args: string[]): Promise<string> {
  const { code, stdout, stderr } = await runProcess("qemu-img", { args });
  assertEquals(code, 0, stderr);
  return stdout;
}
