import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import { compressedPlace, readAt } from "../../lib/image/_header.ts";
import { assertSelfContained, inspectQcow2 } from "../../lib/image/qcow2.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import {
  bytesOf,
  qcow2,
  type Qcow2Parts,
  writeImage,
} from "../support/qcow2.ts";

/** Runs one test with the path of an image. */
function test(name: string, body: (path: string) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    await body(join(dir.path, "a.qcow2"));
  });
}

/** What is said of an image: its header, or why it is refused. */
async function described(path: string, image: DataView, length?: number) {
  await writeImage(path, image, length);
  try {
    return await inspectQcow2(path);
  } catch (error) {
    if (!(error instanceof ToolsmithError)) throw error;
    assertEquals(error.code, "image_invalid");
    assert(error.message.startsWith(`${path} `), error.message);
    return error.message.slice(path.length + 1);
  }
}

/** An image without a disk, which a header alone describes. */
function headerAlone(version: number): DataView {
  const view = qcow2({ version, clusterBits: 9, size: 0, tables: [] });
  view.setBigUint64(40, 0n);
  return view;
}

test("a header is as long as its version has it, and else cut off", async (path) => {
  const cases: [number, number, boolean][] = [
    [2, 71, false],
    [2, 72, true],
    [3, 72, false],
    [3, 103, false],
    [3, 104, true],
  ];
  for (const [version, length, whole] of cases) {
    const found = await described(path, headerAlone(version), length);
    if (whole) assertEquals((found as { version: number }).version, version);
    else assertEquals(found, "is cut off in its header", `${length}`);
  }
});

test("what begins as a QCOW2 and ends there is cut off, what is shorter is none", async (path) => {
  const image = headerAlone(3);
  assertEquals(await described(path, image, 4), "is cut off in its header");
  assertEquals(await described(path, image, 3), "is not a QCOW2 image");
  const empty = "is not a QCOW2 image: it is empty";
  assertEquals(await described(path, image, 0), empty);
});

test("versions, sizes of clusters and features that are not known are refused by their values", async (path) => {
  for (const version of [1, 4]) {
    assertEquals(
      await described(path, qcow2({ version })),
      `is QCOW2 of the unknown version ${version}`,
    );
  }
  for (const clusterBits of [9, 21]) {
    const found = await described(path, qcow2({ clusterBits }));
    assertEquals(
      (found as { clusterSize: number }).clusterSize,
      2 ** clusterBits,
    );
  }
  for (const clusterBits of [8, 22]) {
    assertEquals(
      await described(path, qcow2({ clusterBits })),
      `has clusters of the impossible size 2^${clusterBits}`,
    );
  }
  assertEquals(
    await described(path, qcow2({ features: 0x23n })),
    "has unknown incompatible features: 0x23",
  );
  const found = await described(path, qcow2({ features: 0x1bn }));
  assertEquals(
    (found as { incompatibleFeatures: bigint }).incompatibleFeatures,
    0x1bn,
  );
  // Version 2 has no such field: what stands there is not read as one.
  const old = qcow2({ version: 2 });
  old.setUint32(72, 0xff);
  old.setUint32(76, 8);
  const { incompatibleFeatures } = await described(path, old) as {
    incompatibleFeatures: bigint;
  };
  assertEquals(incompatibleFeatures, 0n);
});

test("a disk is as large as the tables reach, with entries of either size", async (path) => {
  for (const [features, reach] of [[0n, 2 * 64 * 512], [16n, 2 * 32 * 512]]) {
    const parts = { features: BigInt(features), tables: [[], []] };
    const size = Number(reach);
    const found = await described(path, qcow2({ ...parts, size }));
    assertEquals((found as { virtualSize: number }).virtualSize, size);
    assertEquals(
      await described(path, qcow2({ ...parts, size: size + 1 })),
      "has a table of clusters too small for its disk",
    );
  }
});

test("the first table ends within the file, and has at most 32 MiB", async (path) => {
  const cut = "is cut off: its table of clusters is not there";
  const image = qcow2({ tables: [[], []] });
  assert(typeof await described(path, image, 512 + 16) === "object");
  assertEquals(await described(path, image, 512 + 15), cut);
  const entries = 4 * 2 ** 20;
  const room = 512 + 8 * (entries + 1);
  image.setUint32(36, entries);
  assert(typeof await described(path, image, room) === "object");
  image.setUint32(36, entries + 1);
  assertEquals(await described(path, image, room), cut);
});

test("how clusters are packed, sealed and kept is read from its own field", async (path) => {
  const COMPRESSION = 8n;
  const packing: [Qcow2Parts, string][] = [
    [{ features: COMPRESSION, compression: 1 }, "zstd"],
    [{ features: COMPRESSION, compression: 0 }, "zlib"],
    [{ features: 0n, compression: 1 }, "zlib"],
    // The field is not in the header.
    [{ features: COMPRESSION, compression: 1, headerLength: 104 }, "zlib"],
    [{ features: COMPRESSION, compression: 1, headerLength: 105 }, "zstd"],
  ];
  for (const [parts, expected] of packing) {
    const found = await described(path, qcow2(parts));
    assertEquals((found as { compression: string }).compression, expected);
  }
  const short = qcow2({ features: COMPRESSION, size: 0, tables: [] });
  short.setBigUint64(40, 0n);
  short.setUint8(104, 1);
  for (const [length, expected] of [[104, "zlib"], [105, "zstd"]] as const) {
    const found = await described(path, short, length);
    assertEquals((found as { compression: string }).compression, expected);
  }
  for (const [method, expected] of [[0, undefined], [1, "aes"], [2, "luks"]]) {
    const image = qcow2({});
    image.setUint32(32, Number(method));
    image.setUint32(60, 7);
    const found = await described(path, image);
    assert(typeof found === "object");
    assertEquals([found.encryption, found.snapshots], [expected, 7]);
    assertEquals([found.backingFile, found.dataFile], [undefined, undefined]);
  }
});

/** An image with extensions of its header: type, length, and what stands there. */
function extended(
  extensions: [number, number, string][],
  parts: Qcow2Parts = {},
) {
  const image = qcow2(parts);
  let at = parts.version === 2 ? 72 : parts.headerLength ?? 112;
  for (const [type, length, text] of extensions) {
    image.setUint32(at, type);
    image.setUint32(at + 4, length);
    new Uint8Array(image.buffer).set(bytesOf(text), at + 8);
    at += 8 + Math.ceil(length / 8) * 8;
  }
  return image;
}

test("a data file is found among the extensions, or by its flag alone", async (path) => {
  const DATA_FILE = 0x44415441;
  const OTHER = 0x6803f857;
  const cases: [DataView, string | undefined][] = [
    [extended([]), undefined],
    [extended([], { features: 4n }), ""],
    [extended([[DATA_FILE, 4, "data"]]), "data"],
    [extended([[DATA_FILE, 3, "data"]], { version: 2 }), "dat"],
    [extended([[OTHER, 9, "some more"], [DATA_FILE, 4, "data"]]), "data"],
    [extended([[OTHER, 72, "x".repeat(72)], [DATA_FILE, 4, "data"]]), "data"],
    [extended([[OTHER, 8, "exactly8"], [DATA_FILE, 4, "data"]]), "data"],
    // The list has ended.
    [extended([[0, 0, ""], [DATA_FILE, 4, "data"]]), undefined],
    // It begins where the header ends.
    [extended([[DATA_FILE, 4, "data"]], { headerLength: 120 }), "data"],
  ];
  for (const [image, expected] of cases) {
    const found = await described(path, image);
    assertEquals((found as { dataFile?: string }).dataFile, expected);
  }
  // The last eight bytes of a file may be one, too.
  const last = qcow2({ headerLength: 1024 + 512 - 8 });
  last.setUint32(1024 + 512 - 8, DATA_FILE);
  const found = await described(path, last);
  assertEquals((found as { dataFile?: string }).dataFile, "");
});

test("a name in the header has at most 1023 bytes, of the first 64 KiB", async (path) => {
  const name = async (offset: number, length: number) => {
    const image = qcow2({ data: bytesOf("x".repeat(70_000)) });
    new Uint8Array(image.buffer).set(bytesOf("\x01a\x1f b\x7f"), 1536);
    image.setBigUint64(8, BigInt(offset));
    image.setUint32(16, length);
    const found = await described(path, image);
    return (found as { backingFile?: string }).backingFile;
  };
  assertEquals(await name(1536, 6), "?a? b?");
  assertEquals(await name(1536, 2), "?a");
  assertEquals((await name(2000, 1023))?.length, 1023);
  assertEquals((await name(2000, 1024))?.length, 1023);
  assertEquals(await name(65_536 - 3, 1000), "xxx");
  assertEquals(await name(65_536, 1000), "");
});

Deno.test("where a compressed cluster lies is read as the size of clusters says", () => {
  const compressed = 1n << 62n;
  // Of 512 bytes: 61 bits of offset, and one of sectors; of 64 KiB: 54 and 8.
  assertEquals(compressedPlace(compressed | 1n << 61n | 1000n, 512), {
    offset: 1000,
    bytes: 1024 - 1000 % 512,
    room: 1024,
  });
  assertEquals(compressedPlace(compressed | 5n << 54n | 4096n, 65_536), {
    offset: 4096,
    bytes: 6 * 512,
    room: 6 * 512,
  });
});

Deno.test("a file that gives few bytes at a time is read to its end", async () => {
  const bytes = bytesOf("0123456789");
  let at = 0;
  const file = {
    stat: () => Promise.resolve({ size: bytes.length }),
    seek: (offset: number) => Promise.resolve(at = offset),
    read(into: Uint8Array) {
      const part = bytes.subarray(at, at + Math.min(3, into.length));
      into.set(part);
      at += part.length;
      return Promise.resolve(part.length || null);
    },
  } as unknown as Deno.FsFile;
  const read = async (offset: number, length: number) =>
    new TextDecoder().decode(await readAt(file, offset, length));
  assertEquals(await read(2, 7), "2345678");
  assertEquals(await read(2, 80), "23456789");
  assertEquals(await read(20, 5), "");
});

test("an image with both a backing and a data file is refused for either", async (path) => {
  const info = await described(path, qcow2({}));
  assert(typeof info === "object");
  const both = { ...info, backingFile: "", dataFile: "data" };
  const why = async (given: typeof info) =>
    (await failure("image_unsafe", () => assertSelfContained(given, path)))
      .message.slice(path.length + 1);
  assertEquals(await why(both), "refers to a backing file: without a name");
  const data = { ...info, dataFile: "data" };
  assertEquals(await why(data), "refers to an external data file: data");
  assertSelfContained(info, path);
});
