import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { inspectImage, statFile } from "../../lib/image/inspect.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { dataOffset, qcow2, writeImage } from "../support/qcow2.ts";

const CLUSTER = 512;
const COMPRESSED = 1n << 62n;

/** Runs one test with the path of an image. */
function test(name: string, body: (path: string) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    await body(join(dir.path, "a.qcow2"));
  });
}

/**
 * Writes an image of clusters that are there in full, each all zeros or bytes
 * that nothing makes smaller.
 *
 * @param path The file.
 * @param isZero Of each cluster.
 * @param more Clusters behind them, which nothing refers to.
 */
async function writePlain(path: string, isZero: boolean[], more = 0) {
  const data = new Uint8Array((isZero.length + more) * CLUSTER);
  const count = Math.max(1, Math.ceil(isZero.length / 64));
  const empty = Array.from({ length: count }, (): bigint[] => []);
  const start = dataOffset({ tables: empty });
  isZero.forEach((zero, nth) => {
    const at = nth * CLUSTER;
    if (!zero) crypto.getRandomValues(data.subarray(at, at + CLUSTER));
    empty[Math.floor(nth / 64)].push(BigInt(start + at));
  });
  await writeImage(path, qcow2({ tables: empty, data }));
  return start + data.length;
}

test("what compression saves is told by the clusters that are there", async (path) => {
  const zeros = [
    true,
    false,
    false,
    true,
    false,
    true,
    true,
    false,
    true,
    false,
  ];
  const size = await writePlain(path, zeros);
  const found = await inspectImage(path);
  assertEquals(found.savings, 5 * CLUSTER / size);
  assertEquals(found.bytes, size);
  assertEquals(found.virtualSize, 64 * CLUSTER);
  assertEquals(found.compressed, false);
  assertEquals(found.modified, (await Deno.stat(path)).mtime);
  const command = `qemu-img convert -c -O qcow2 ${path} ` +
    path.replace(/\.qcow2$/, ".compressed.qcow2");
  assertEquals(found.warnings, [
    `${path} would shrink by about 38 % if it were compressed: ${command}`,
  ]);
  const full = await writePlain(path, zeros.fill(false));
  const { savings, warnings } = await inspectImage(path);
  assertEquals([savings, warnings, full], [0, [], size]);
});

test("a tenth is not worth a warning, more is", async (path) => {
  const clusters = new Array<boolean>(16).fill(false).fill(true, 14);
  const size = await writePlain(path, clusters, 1);
  assertEquals(size, 20 * CLUSTER);
  const found = await inspectImage(path);
  assertEquals([found.savings, found.warnings], [0.1, []]);
  clusters[0] = true;
  await writePlain(path, clusters, 1);
  const [warning] = (await inspectImage(path)).warnings;
  assert(warning.includes(" by about 15 % if"), warning);
});

test("of many clusters one of each stretch is tried, and not always the same of it", async (path) => {
  const inStretches = Array.from({ length: 640 }, (_, nth) => nth % 20 < 10);
  const size = await writePlain(path, inStretches);
  const { savings } = await inspectImage(path);
  assertEquals(savings, 320 * CLUSTER / size);
  const inTurns = inStretches.map((_, nth) => nth % 2 === 0);
  await writePlain(path, inTurns);
  const found = await inspectImage(path);
  const part = found.savings * size / (640 * CLUSTER);
  assert(part > 0.4 && part < 0.6, `${part}`);
});

test("of a large cluster its first 64 KiB are tried", async (path) => {
  const clusterBits = 17;
  const start = dataOffset({ clusterBits });
  const data = new Uint8Array(4 * 2 ** clusterBits);
  const entries = [0, 1, 2, 3].map((nth) => {
    const at = nth * 2 ** clusterBits;
    crypto.getRandomValues(data.subarray(at, at + 65_536));
    return BigInt(start + at);
  });
  await writeImage(path, qcow2({ clusterBits, tables: [entries], data }));
  assertEquals((await inspectImage(path)).savings, 0);
});

test("data that repeats itself would become small", async (path) => {
  const data = new Uint8Array(8 * CLUSTER).fill(7);
  const start = dataOffset({});
  const entries = Array.from(
    { length: 8 },
    (_, it) => BigInt(start + it * 512),
  );
  await writeImage(path, qcow2({ tables: [entries], data }));
  const { savings } = await inspectImage(path);
  const part = savings * (start + data.length) / data.length;
  assert(part > 0.9 && part < 1, `${part}`);
});

test("room that nothing refers to is all but data, tables, header and counts", async (path) => {
  const size = await writePlain(path, new Array(10).fill(false), 1000);
  // Two tables of clusters; a header, and counts of two bytes a cluster.
  const tables = CLUSTER + 8;
  const counts = (3 + Math.ceil(1013 * 2 / CLUSTER)) * CLUSTER;
  const unused = size - 10 * CLUSTER - tables - counts;
  const { savings, bytes } = await inspectImage(path);
  assertEquals([savings, bytes], [unused / size, 1013 * CLUSTER]);
  // What is compressed takes its sectors.
  const entry = COMPRESSED | 1n << 61n | BigInt(dataOffset({}));
  const data = new Uint8Array(1010 * CLUSTER);
  await writeImage(path, qcow2({ tables: [[entry]], data }));
  const packed = await inspectImage(path);
  assertEquals(packed.compressed, true);
  const left = size - 2 * CLUSTER - tables - counts;
  assertEquals(packed.savings, left / size);
});

test("what is not looked at is taken to be like the rest, and to be in use", async (path) => {
  const clusterBits = 12;
  const shape = { clusterBits, tables: new Array(257).fill([]) };
  const start = dataOffset(shape);
  const tables = shape.tables.map((_, nth) => [BigInt(start + nth * 4096)]);
  const image = qcow2({ ...shape, tables, data: new Uint8Array(300 * 4096) });
  await writeImage(path, image);
  const { savings } = await inspectImage(path);
  assertEquals(savings, 257 * 4096 / image.byteLength);
});

test("an image is compressed where most clusters are", async (path) => {
  const packed = COMPRESSED | BigInt(dataOffset({}));
  const data = new Uint8Array(1024);
  const cases: [bigint[], boolean][] = [
    [[packed, 1536n], false],
    [[packed, packed, 1536n], true],
    [[], false],
  ];
  for (const [entries, expected] of cases) {
    await writeImage(path, qcow2({ tables: [entries], data }));
    assertEquals((await inspectImage(path)).compressed, expected);
  }
});

test("holes are counted, and an image has more than 10 GB from the next byte on", async (path) => {
  const image = qcow2({});
  const cases: [number, string | undefined][] = [
    [10_000_000_000, undefined],
    [10_000_000_001, "10.0"],
    [19_960_000_000, "20.0"],
  ];
  for (const [size, words] of cases) {
    await writeImage(path, image, size);
    const { bytes, sparseBytes, warnings } = await inspectImage(path);
    assertEquals(bytes, size);
    const { blocks } = await Deno.stat(path);
    assertEquals(sparseBytes, blocks === null ? null : size - blocks * 512);
    const warning = warnings.find((text) => text.includes("a layer"));
    const expected = words &&
      `${path} has ${words} GB: ghcr.io documents a limit of 10 GB a layer, and of 10 minutes an upload`;
    assertEquals(warning, expected);
  }
  await writePlain(path, [false]);
  const { sparseBytes } = await inspectImage(path);
  if (sparseBytes !== null) assertEquals(sparseBytes, 0);
});

Deno.test("the command that makes an image smaller can be pasted, whatever its name", async () => {
  await using dir = await temporaryDir();
  const cases = [
    ["plain-1.0_a.img", "", "plain-1.0_a.compressed.qcow2"],
    ["an image", "'", "an image.compressed.qcow2"],
    ["o'ne$.qcow2", "'", "o'\\''ne$.compressed.qcow2"],
  ];
  for (const [name, mark, smaller] of cases) {
    const path = join(dir.path, name);
    await writePlain(path, [true, true, true]);
    const [warning] = (await inspectImage(path)).warnings;
    const quoted = path.replaceAll("'", "'\\''");
    const command = `qemu-img convert -c -O qcow2 ${mark}${quoted}${mark} ` +
      `${mark}${dir.path}/${smaller}${mark}`;
    assert(warning.endsWith(`: ${command}`), warning);
  }
});

test("what cannot be published is refused by its path", async (path) => {
  const none = await failure("source_not_found", () => inspectImage(path));
  assertEquals(none.message, `Cannot read image ${path}: no such file`);
  assertEquals(
    none.hint,
    "check the path; it starts from the current directory",
  );
  await Deno.mkdir(path);
  const cases = [[path, "a directory"], ["/dev/null", "not a regular file"]];
  for (const [file, what] of cases) {
    const look = () => statFile(file, "extra file");
    const { message, hint } = await failure("file_unreadable", look);
    assertEquals(message, `Cannot read extra file ${file}: it is ${what}`);
    assertEquals(hint, "name a file");
  }
  await Deno.remove(path);
  const image = qcow2({});
  image.setUint32(32, 1);
  await writeImage(path, image);
  const sealed = await failure("image_invalid", () => inspectImage(path));
  assertEquals(
    sealed.message,
    `${path} is encrypted (aes): nobody else could boot it`,
  );
  await writeImage(path, qcow2({ features: 4n }));
  await failure("image_unsafe", () => inspectImage(path));
  await Deno.writeTextFile(path, "no image");
  await failure("image_invalid", () => inspectImage(path));
  const link = `${path}.link`;
  await Deno.symlink(path, link);
  assertEquals((await statFile(link, "image")).size, 8);
});
