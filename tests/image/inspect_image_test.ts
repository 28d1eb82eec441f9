import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  inspectImage,
  statReadableFile,
} from "../../lib/image/inspect_image.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { countReads } from "../support/file_reads.ts";
import { dataOffset, makeQcow2, writeImage } from "../support/qcow2.ts";

const COMPRESSED = 1n << 62n;

/** Runs one test with the path of an image. */
function test(name: string, body: (path: string) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    await body(join(dir.path, "a.qcow2"));
  });
}

type Part = "zeros" | "random";

/** Writes an image with `count` clusters of data, each of one kind. */
async function writeParts(
  path: string,
  count: number,
  kind: (nth: number) => Part,
  clusterBits = 9,
) {
  const size = 2 ** clusterBits;
  const data = new Uint8Array(count * size);
  for (let nth = 0; nth < count; nth++) {
    const part = data.subarray(nth * size, (nth + 1) * size);
    // The maximum per call.
    for (let at = 0; kind(nth) === "random" && at < size; at += 65_536) {
      crypto.getRandomValues(part.subarray(at, at + 65_536));
    }
  }
  const start = BigInt(dataOffset({ clusterBits }));
  await writeImage(path, makeQcow2({ clusterBits, tables: [[start]], data }));
}

test("inspectImage() reads at most 6 MiB of any image", async (path) => {
  const clusterBits = 21;
  const size = 2 ** clusterBits;
  const shape = { clusterBits, tables: [[]] };
  const at = BigInt(dataOffset(shape));
  const tables = [new Array(size / 8).fill(at)];
  const image = makeQcow2({ ...shape, tables });
  // All L1 entries refer to one L2 table.
  image.setUint32(36, size / 8);
  for (let entry = 0; entry < size / 8; entry++) {
    image.setBigUint64(size + entry * 8, BigInt(2 * size));
  }
  await writeImage(path, image, 2 ** 40);
  using reads = countReads();
  await inspectImage(path);
  assert(reads.bytes <= 6 * 2 ** 20, `${reads.bytes}`);
});

test("inspectImage() reports an image as compressed when most clusters are", async (path) => {
  const packed = COMPRESSED | BigInt(dataOffset({}));
  const data = new Uint8Array(1024);
  const cases: [bigint[], boolean][] = [
    [[packed, 1536n], false],
    [[packed, packed, 1536n], true],
    [[], false],
  ];
  for (const [entries, expected] of cases) {
    await writeImage(path, makeQcow2({ tables: [entries], data }));
    assertEquals((await inspectImage(path)).compressed, expected);
  }
});

test("inspectImage() returns the size of the file's holes, and warns about a file above 10 GB", async (path) => {
  const image = makeQcow2({});
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
    const warning = warnings.find((text) => text.includes("per layer"));
    const expected = words &&
      `${path} has ${words} GB: ghcr.io documents limits of 10 GB per layer and 10 minutes per upload`;
    assertEquals(warning, expected);
  }
  await writeParts(path, 1, () => "random");
  const { sparseBytes } = await inspectImage(path);
  if (sparseBytes !== null) assertEquals(sparseBytes, 0);
});

test("inspectImage() names the path of a file that cannot be published", async (path) => {
  const none = await expectFailure(
    "source_not_found",
    () => inspectImage(path),
  );
  assertEquals(none.message, `Cannot read image ${path}: no such file`);
  assertEquals(
    none.hint,
    "check the path; relative paths start at the current directory",
  );
  await Deno.mkdir(path);
  const cases = [[path, "a directory"], ["/dev/null", "not a regular file"]];
  for (const [file, what] of cases) {
    const look = () => statReadableFile(file, "extra file");
    const { message, hint } = await expectFailure("file_unreadable", look);
    assertEquals(message, `Cannot read extra file ${file}: it is ${what}`);
    assertEquals(hint, "pass the path of a file");
  }
  await Deno.remove(path);
  const image = makeQcow2({});
  image.setUint32(32, 1);
  await writeImage(path, image);
  const sealed = await expectFailure("image_invalid", () => inspectImage(path));
  assertEquals(
    sealed.message,
    `${path} is encrypted (aes): Toolsmith boots only unencrypted images`,
  );
  await writeImage(path, makeQcow2({ features: 4n }));
  await expectFailure("image_unsafe", () => inspectImage(path));
  await Deno.writeTextFile(path, "no image");
  await expectFailure("image_invalid", () => inspectImage(path));
  const link = `${path}.link`;
  await Deno.symlink(path, link);
  assertEquals((await statReadableFile(link, "image")).size, 8);
});

Deno.test({
  name: "inspectImage() throws for a file without read permission",
  // Root can read every file.
  ignore: Deno.build.os === "windows" || Deno.uid() === 0,
  async fn() {
    const path = await Deno.makeTempFile({ suffix: ".qcow2" });
    await Deno.chmod(path, 0);
    const error = await assertRejects(() => inspectImage(path), ToolsmithError);
    assertEquals(error.code, "file_unreadable");
    assertStringIncludes(error.message, "permission denied");
    await Deno.remove(path);
  },
});
