import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { type ErrorCode, ToolsmithError } from "../../lib/errors.ts";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { makeEncrypted } from "../support/encrypted.ts";
import { needs } from "../support/parts.ts";
import {
  assertSelfContained,
  inspectQcow2,
  sampleClusters,
} from "../../lib/image/qcow2.ts";

const MiB = 1024 * 1024;

/** Runs one test in a directory of its own; skipped where qemu-img is missing. */
function test(name: string, body: (dir: string) => Promise<void>) {
  Deno.test({
    name,
    ...needs("qemuImg"),
    async fn() {
      const dir = await Deno.makeTempDir();
      try {
        await body(dir);
      } finally {
        await Deno.remove(dir, { recursive: true });
      }
    },
  });
}

async function qemuImg(...args: string[]) {
  const { code, stderr } = await run("qemu-img", { args });
  assertEquals(code, 0, stderr);
}

async function rejects(code: ErrorCode, promise: Promise<unknown>) {
  const error = await assertRejects(() => promise, ToolsmithError);
  assertEquals(error.code, code, error.message);
  return error;
}

/** Overwrites bytes of a file. */
async function patch(path: string, offset: number, bytes: number[]) {
  using file = await Deno.open(path, { write: true });
  await file.seek(offset, Deno.SeekMode.Start);
  await file.write(new Uint8Array(bytes));
}

Deno.test("any header is described or refused with a typed error", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "a.qcow2");
  const word = fc.oneof(
    fc.constantFrom(0, 1, 2, 3, 8, 9, 16, 21, 72, 104, 112, 0x44415441),
    fc.integer({ min: 0, max: 0xffffffff }),
  );
  const header = fc.array(word, { maxLength: 64 });
  await fc.assert(
    fc.asyncProperty(header, fc.nat(200), async (words, size) => {
      const view = new DataView(new ArrayBuffer(8 + words.length * 4 + size));
      view.setUint32(0, 0x514649fb);
      view.setUint32(4, 3);
      words.forEach((value, at) => view.setUint32(8 + 4 * at, value));
      await Deno.writeFile(path, new Uint8Array(view.buffer));
      for (const read of [inspectQcow2, sampleClusters]) {
        await read(path).catch((error) => {
          if (!(error instanceof ToolsmithError)) throw error;
          assertEquals(error.code, "image_invalid");
        });
      }
    }),
  );
});

test("an image made by qemu-img is described and is self-contained", async (dir) => {
  const path = join(dir, "a.qcow2");
  await qemuImg("create", "-q", "-f", "qcow2", path, "3G");
  const info = await inspectQcow2(path);
  assertEquals(info.version, 3);
  assertEquals(info.virtualSize, 3 * 1024 * MiB);
  assertEquals(info.clusterSize, 65536);
  assertEquals(info.fileSize, (await Deno.stat(path)).size);
  assertEquals(info.encryption, undefined);
  assertSelfContained(info, path);
});

test("the older version 2 with small clusters is described", async (dir) => {
  const path = join(dir, "a.qcow2");
  const options = "compat=0.10,cluster_size=4k";
  await qemuImg("create", "-q", "-f", "qcow2", "-o", options, path, "10M");
  const info = await inspectQcow2(path);
  assertEquals([info.version, info.clusterSize], [2, 4096]);
  assertSelfContained(info, path);
});

test("a backing file is named and refused, also in version 2", async (dir) => {
  await qemuImg("create", "-q", "-f", "qcow2", join(dir, "base.qcow2"), "1M");
  for (const compat of ["0.10", "1.1"]) {
    const path = join(dir, `top${compat}.qcow2`);
    const base = ["-b", "base.qcow2", "-F", "qcow2", "-o", `compat=${compat}`];
    await qemuImg("create", "-q", "-f", "qcow2", ...base, path);
    const info = await inspectQcow2(path);
    assertEquals(info.backingFile, "base.qcow2");
    const error = assertThrows(
      () => assertSelfContained(info, path),
      ToolsmithError,
    );
    assertEquals(error.code, "image_unsafe");
    assert(error.message.includes("base.qcow2"));
  }
});

test("an external data file is named and refused", async (dir) => {
  const path = join(dir, "a.qcow2");
  const data = join(dir, "data.raw");
  const options = `data_file=${data},data_file_raw=on`;
  await qemuImg("create", "-q", "-f", "qcow2", "-o", options, path, "1M");
  const info = await inspectQcow2(path);
  assertEquals(info.dataFile, data);
  const error = assertThrows(
    () => assertSelfContained(info, path),
    ToolsmithError,
  );
  assertEquals(error.code, "image_unsafe");
  // The flag alone, without a name, is refused as well.
  assertThrows(() => assertSelfContained({ ...info, dataFile: "" }, path));
});

test("compressed clusters are told from plain ones", async (dir) => {
  const raw = join(dir, "a.raw");
  await Deno.writeFile(raw, new Uint8Array(MiB).fill(7));
  const [plain, small, zstd] = ["p", "c", "z"].map((n) => join(dir, n));
  await qemuImg("convert", "-O", "qcow2", raw, plain);
  await qemuImg("convert", "-c", "-O", "qcow2", raw, small);
  const stored = await sampleClusters(plain);
  assertEquals([stored.plain.length, stored.compressed], [16, 0]);
  const packed = await sampleClusters(small);
  assertEquals([packed.plain.length, packed.compressed], [0, 16]);
  // Each compressed cluster is in the file, and none of it elsewhere.
  assert(packed.compressedBytes >= 16 * 512);
  assert(packed.compressedBytes < (await Deno.stat(small)).size);
  const options = ["-o", "compression_type=zstd,extended_l2=on"];
  await qemuImg("convert", "-c", "-O", "qcow2", ...options, raw, zstd);
  assertEquals((await inspectQcow2(zstd)).compression, "zstd");
  assertEquals((await sampleClusters(zstd)).compressed, 16);
});

test("an encrypted image says so", async (dir) => {
  const path = join(dir, "a.qcow2");
  await makeEncrypted(path);
  assertEquals((await inspectQcow2(path)).encryption, "luks");
});

test("what is no QCOW2 image is refused with its path", async (dir) => {
  const path = join(dir, "a.qcow2");
  for (const size of [3, 512, 100_000]) {
    await Deno.writeFile(path, new Uint8Array(size));
    const error = await rejects("image_invalid", inspectQcow2(path));
    assert(error.message.includes(path));
    assert(error.hint?.includes("qemu-img convert"));
  }
  await assertRejects(
    () => inspectQcow2(join(dir, "none")),
    Deno.errors.NotFound,
  );
});

test("a damaged or cut header is refused", async (dir) => {
  const path = join(dir, "a.qcow2");
  const damaged: [number, number[]][] = [
    [4, [0, 0, 0, 9]], // version
    [20, [0, 0, 0, 40]], // cluster size
    [24, [0x7f, 0, 0, 0, 0, 0, 0, 0]], // disk larger than its tables
    [40, [0, 0xff, 0, 0, 0, 0, 0, 0]], // tables beyond the end
    [72, [0x80, 0, 0, 0, 0, 0, 0, 0]], // an unknown feature
  ];
  for (const [offset, bytes] of damaged) {
    await qemuImg("create", "-q", "-f", "qcow2", path, "1M");
    await patch(path, offset, bytes);
    await rejects("image_invalid", inspectQcow2(path));
  }
  for (const length of [4, 71, 100, 120]) {
    await qemuImg("create", "-q", "-f", "qcow2", path, "1M");
    await Deno.truncate(path, length);
    await rejects("image_invalid", inspectQcow2(path));
  }
});

test("a name in the header cannot control the terminal", async (dir) => {
  await qemuImg("create", "-q", "-f", "qcow2", join(dir, "base.qcow2"), "1M");
  const path = join(dir, "top.qcow2");
  await qemuImg(
    "create",
    "-q",
    "-f",
    "qcow2",
    "-b",
    "base.qcow2",
    "-F",
    "qcow2",
    path,
  );
  const bytes = await Deno.readFile(path);
  const at = new TextDecoder("latin1").decode(bytes).indexOf("base.qcow2");
  await patch(path, at, [0x1b]);
  assertEquals((await inspectQcow2(path)).backingFile, "?ase.qcow2");
});

test("all tables of an image are looked at, or as many as are allowed", async (dir) => {
  const raw = join(dir, "a.raw");
  const path = join(dir, "a.qcow2");
  await Deno.writeFile(raw, new Uint8Array(8 * MiB).fill(7));
  const options = ["-o", "cluster_size=4k"];
  await qemuImg("convert", "-O", "qcow2", ...options, raw, path);
  const all = await sampleClusters(path);
  assertEquals([all.seen, all.plain.length], [1, 2048]);
  const some = await sampleClusters(path, 2);
  assertEquals([some.seen, some.plain.length], [0.5, 1024]);
  assertEquals(some.tableBytes, all.tableBytes);
});

test("a disk as large as its tables reach is described, one sector more is refused", async (dir) => {
  const path = join(dir, "a.qcow2");
  await qemuImg("create", "-q", "-f", "qcow2", path, "512M");
  assertEquals((await inspectQcow2(path)).virtualSize, 512 * MiB);
  await patch(path, 24, [0, 0, 0, 0, 0x20, 0, 2, 0]);
  const { message } = await rejects("image_invalid", inspectQcow2(path));
  assert(message.includes("too small for its disk"), message);
});
