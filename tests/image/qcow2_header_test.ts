import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  assertBootableImage,
  type Qcow2Header,
  readQcow2Header,
} from "../../lib/image/qcow2_header.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import {
  makeQcow2,
  type Qcow2Parts,
  textBytes,
  writeImage,
} from "../support/qcow2.ts";

/** Runs one test with the path of an image. */
function test(name: string, body: (path: string) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    await body(join(dir.path, "a.qcow2"));
  });
}

/** Returns an image's header, or the error message without the path. */
async function described(path: string, image: DataView, length?: number) {
  await writeImage(path, image, length);
  try {
    return await readQcow2Header(path);
  } catch (error) {
    if (!(error instanceof ToolsmithError)) throw error;
    assertEquals(error.code, "image_invalid");
    assert(error.message.startsWith(`${path} `), error.message);
    return error.message.slice(path.length + 1);
  }
}

/** An image with a disk of size 0: a header alone. */
function headerAlone(version: number): DataView {
  const view = makeQcow2({ version, clusterBits: 9, size: 0, tables: [] });
  view.setBigUint64(40, 0n);
  return view;
}

test("readQcow2Header() rejects a header shorter than its version requires", async (path) => {
  const cases: [number, number, boolean][] = [
    [2, 71, false],
    [2, 72, true],
    [3, 72, false],
    [3, 103, false],
    [3, 104, true],
  ];
  for (const [version, length, whole] of cases) {
    const found = await described(path, headerAlone(version), length);
    if (whole) assertEquals(typeof found, "object");
    else assertEquals(found, "is truncated in its header", `${length}`);
  }
});

test("readQcow2Header() distinguishes a truncated header from a non-QCOW2 file", async (path) => {
  const image = headerAlone(3);
  assertEquals(await described(path, image, 4), "is truncated in its header");
  assertEquals(await described(path, image, 3), "is not a QCOW2 image");
  const empty = "is not a QCOW2 image: it is empty";
  assertEquals(await described(path, image, 0), empty);
});

test("readQcow2Header() rejects unknown versions, cluster sizes and features with their values", async (path) => {
  for (const version of [1, 4]) {
    assertEquals(
      await described(path, makeQcow2({ version })),
      `has the unknown QCOW2 version ${version}`,
    );
  }
  for (const clusterBits of [9, 21]) {
    const found = await described(path, makeQcow2({ clusterBits }));
    assertEquals(
      (found as { clusterSize: number }).clusterSize,
      2 ** clusterBits,
    );
  }
  for (const clusterBits of [8, 22]) {
    assertEquals(
      await described(path, makeQcow2({ clusterBits })),
      `has the invalid cluster size 2^${clusterBits}`,
    );
  }
  // QEMU refuses subclusters of less than 512 bytes.
  assertEquals(
    await described(path, makeQcow2({ features: 16n, clusterBits: 13 })),
    "has the invalid cluster size 2^13",
  );
  assertEquals(
    await described(path, makeQcow2({ features: 0x23n })),
    "has unknown incompatible features: 0x23",
  );
  const found = await described(
    path,
    makeQcow2({ features: 0x1bn, clusterBits: 14 }),
  );
  assertEquals((found as Qcow2Header).extendedL2, true);
  // Version 2 has no feature field, so these bytes are ignored.
  const old = makeQcow2({ version: 2 });
  old.setUint32(72, 0xff);
  old.setUint32(76, 16);
  const { extendedL2 } = await described(path, old) as Qcow2Header;
  assertEquals(extendedL2, false);
});

test("readQcow2Header() rejects a disk larger than its L1 table covers", async (path) => {
  const cases: [Qcow2Parts, number][] = [
    [{ clusterBits: 9 }, 2 * 64 * 2 ** 9],
    [{ clusterBits: 14, features: 16n }, 2 * 1024 * 2 ** 14],
  ];
  for (const [kind, size] of cases) {
    const parts = { ...kind, tables: [[], []] };
    const found = await described(path, makeQcow2({ ...parts, size }));
    assertEquals((found as { virtualSize: number }).virtualSize, size);
    assertEquals(
      await described(path, makeQcow2({ ...parts, size: size + 1 })),
      "has an L1 table too small for its disk",
    );
  }
});

test("readQcow2Header() rejects an L1 table beyond the file or above 32 MiB", async (path) => {
  const cut = "is truncated: its L1 table is missing";
  const image = makeQcow2({ tables: [[], []] });
  assert(typeof await described(path, image, 512 + 16) === "object");
  assertEquals(await described(path, image, 512 + 15), cut);
  const entries = 4 * 2 ** 20;
  const room = 512 + 8 * (entries + 1);
  image.setUint32(36, entries);
  assert(typeof await described(path, image, room) === "object");
  image.setUint32(36, entries + 1);
  assertEquals(await described(path, image, room), cut);
});

test("readQcow2Header() reads compression and encryption methods", async (path) => {
  const COMPRESSION = 8n;
  const packing: [Qcow2Parts, string][] = [
    [{ features: COMPRESSION, compression: 1 }, "zstd"],
    [{ features: COMPRESSION, compression: 0 }, "zlib"],
    [{ features: 0n, compression: 1 }, "zlib"],
    // The header is too short for the field.
    [{ features: COMPRESSION, compression: 1, headerLength: 104 }, "zlib"],
    [{ features: COMPRESSION, compression: 1, headerLength: 105 }, "zstd"],
  ];
  for (const [parts, expected] of packing) {
    const found = await described(path, makeQcow2(parts));
    assertEquals((found as { compression: string }).compression, expected);
  }
  const short = makeQcow2({ features: COMPRESSION, size: 0, tables: [] });
  short.setBigUint64(40, 0n);
  short.setUint8(104, 1);
  for (const [length, expected] of [[104, "zlib"], [105, "zstd"]] as const) {
    const found = await described(path, short, length);
    assertEquals((found as { compression: string }).compression, expected);
  }
  for (const [method, expected] of [[0, undefined], [1, "aes"], [2, "luks"]]) {
    const image = makeQcow2({});
    image.setUint32(32, Number(method));
    const found = await described(path, image);
    assert(typeof found === "object");
    assertEquals(found.encryption, expected);
    assertEquals([found.backingFile, found.dataFile], [undefined, undefined]);
  }
});

/** An image with header extensions: type, length and data. */
function extended(
  extensions: [number, number, string][],
  parts: Qcow2Parts = {},
) {
  const image = makeQcow2(parts);
  let at = parts.version === 2 ? 72 : parts.headerLength ?? 112;
  for (const [type, length, text] of extensions) {
    image.setUint32(at, type);
    image.setUint32(at + 4, length);
    new Uint8Array(image.buffer).set(textBytes(text), at + 8);
    at += 8 + Math.ceil(length / 8) * 8;
  }
  return image;
}

test("readQcow2Header() finds an external data file by extension or feature bit", async (path) => {
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
    // Type 0 ends the list.
    [extended([[0, 0, ""], [DATA_FILE, 4, "data"]]), undefined],
    // The list begins after a longer header.
    [extended([[DATA_FILE, 4, "data"]], { headerLength: 120 }), "data"],
  ];
  for (const [image, expected] of cases) {
    const found = await described(path, image);
    assertEquals((found as { dataFile?: string }).dataFile, expected);
  }
  // An extension may be the last eight bytes of the file.
  const last = makeQcow2({ headerLength: 1024 + 512 - 8 });
  last.setUint32(1024 + 512 - 8, DATA_FILE);
  const found = await described(path, last);
  assertEquals((found as { dataFile?: string }).dataFile, "");
});

test("readQcow2Header() reads backing file names up to 1023 bytes within the first 64 KiB", async (path) => {
  const name = async (offset: number, length: number) => {
    const image = makeQcow2({ data: textBytes("x".repeat(70_000)) });
    new Uint8Array(image.buffer).set(textBytes("\x01a\x1f b\x7f"), 1536);
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

test("assertBootableImage() rejects an image with a backing file, data file or both", async (path) => {
  const info = await described(path, makeQcow2({}));
  assert(typeof info === "object");
  const both = { ...info, backingFile: "", dataFile: "data" };
  const why = async (given: typeof info) =>
    (await expectFailure(
      "image_unsafe",
      () => assertBootableImage(given, path),
    ))
      .message.slice(path.length + 1);
  assertEquals(await why(both), "refers to a backing file: (unnamed)");
  const data = { ...info, dataFile: "data" };
  assertEquals(await why(data), "refers to an external data file: data");
  assertBootableImage(info, path);
});
