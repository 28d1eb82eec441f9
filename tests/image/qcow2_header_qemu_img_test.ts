import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { type ErrorCode, ToolsmithError } from "../../lib/errors.ts";
import { inspectImage } from "../../lib/image/inspect_image.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { makeEncryptedQcow2 } from "../support/encrypted.ts";
import { requires } from "../support/parts.ts";
import {
  assertBootableImage,
  readQcow2Header,
} from "../../lib/image/qcow2_header.ts";

const MiB = 1024 * 1024;

/** Runs one test in a directory of its own; skipped where qemu-img is missing. */
function test(name: string, body: (dir: string) => Promise<void>) {
  Deno.test({
    name,
    ...requires("qemuImg"),
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
  const { code, stderr } = await runProcess("qemu-img", { args });
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

Deno.test("readQcow2Header() returns a header or throws ToolsmithError, for any input", async () => {
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
      for (const read of [readQcow2Header, inspectImage]) {
        await read(path).catch((error) => {
          if (!(error instanceof ToolsmithError)) throw error;
          assert(["image_invalid", "image_unsafe"].includes(error.code));
        });
      }
    }),
  );
});

test("readQcow2Header() reads an image from qemu-img", async (dir) => {
  const path = join(dir, "a.qcow2");
  await qemuImg("create", "-q", "-f", "qcow2", path, "3G");
  const info = await readQcow2Header(path);
  assertEquals(info.virtualSize, 3 * 1024 * MiB);
  assertEquals(info.clusterSize, 65536);
  assertEquals(info.fileSize, (await Deno.stat(path)).size);
  assertEquals(info.encryption, undefined);
  assertBootableImage(info, path);
});

test("readQcow2Header() reads version 2 with small clusters", async (dir) => {
  const path = join(dir, "a.qcow2");
  const options = "compat=0.10,cluster_size=4k";
  await qemuImg("create", "-q", "-f", "qcow2", "-o", options, path, "10M");
  const info = await readQcow2Header(path);
  assertEquals(info.clusterSize, 4096);
  assertBootableImage(info, path);
});

test("assertBootableImage() rejects a backing file with its name, in versions 2 and 3", async (dir) => {
  await qemuImg("create", "-q", "-f", "qcow2", join(dir, "base.qcow2"), "1M");
  for (const compat of ["0.10", "1.1"]) {
    const path = join(dir, `top${compat}.qcow2`);
    const base = ["-b", "base.qcow2", "-F", "qcow2", "-o", `compat=${compat}`];
    await qemuImg("create", "-q", "-f", "qcow2", ...base, path);
    const info = await readQcow2Header(path);
    assertEquals(info.backingFile, "base.qcow2");
    const error = assertThrows(
      () => assertBootableImage(info, path),
      ToolsmithError,
    );
    assertEquals(error.code, "image_unsafe");
    assert(error.message.includes("base.qcow2"));
  }
});

test("assertBootableImage() rejects an external data file", async (dir) => {
  const path = join(dir, "a.qcow2");
  const data = join(dir, "data.raw");
  const options = `data_file=${data},data_file_raw=on`;
  await qemuImg("create", "-q", "-f", "qcow2", "-o", options, path, "1M");
  const info = await readQcow2Header(path);
  assertEquals(info.dataFile, data);
  const error = assertThrows(
    () => assertBootableImage(info, path),
    ToolsmithError,
  );
  assertEquals(error.code, "image_unsafe");
  // The feature bit without a name is rejected too.
  assertThrows(() => assertBootableImage({ ...info, dataFile: "" }, path));
});

test("inspectImage() distinguishes compressed from uncompressed images", async (dir) => {
  const raw = join(dir, "a.raw");
  await Deno.writeFile(raw, new Uint8Array(MiB).fill(7));
  const [plain, small, zstd] = ["p", "c", "z"].map((n) => join(dir, n));
  await qemuImg("convert", "-O", "qcow2", raw, plain);
  await qemuImg("convert", "-c", "-O", "qcow2", raw, small);
  const options = ["-o", "compression_type=zstd,extended_l2=on"];
  await qemuImg("convert", "-c", "-O", "qcow2", ...options, raw, zstd);
  assertEquals((await readQcow2Header(zstd)).compression, "zstd");
  const images = [plain, small, zstd].map((path) => inspectImage(path));
  const found = (await Promise.all(images)).map(({ compressed }) => compressed);
  assertEquals(found, [false, true, true]);
});

test("readQcow2Header() names the encryption method", async (dir) => {
  const path = join(dir, "a.qcow2");
  await makeEncryptedQcow2(path);
  assertEquals((await readQcow2Header(path)).encryption, "aes");
  // `crypt_method` of the header.
  using file = await Deno.open(path, { write: true });
  await file.seek(35, Deno.SeekMode.Start);
  await file.write(Uint8Array.of(2));
  assertEquals((await readQcow2Header(path)).encryption, "luks");
});

test("readQcow2Header() rejects a non-QCOW2 file with its path", async (dir) => {
  const path = join(dir, "a.qcow2");
  for (const size of [3, 512, 100_000]) {
    await Deno.writeFile(path, new Uint8Array(size));
    const error = await rejects("image_invalid", readQcow2Header(path));
    assert(error.message.includes(path));
    assert(error.hint?.includes("qemu-img convert"));
  }
  await assertRejects(
    () => readQcow2Header(join(dir, "none")),
    Deno.errors.NotFound,
  );
});

test("readQcow2Header() rejects a damaged or truncated header", async (dir) => {
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
    await rejects("image_invalid", readQcow2Header(path));
  }
  for (const length of [4, 71, 100, 120]) {
    await qemuImg("create", "-q", "-f", "qcow2", path, "1M");
    await Deno.truncate(path, length);
    await rejects("image_invalid", readQcow2Header(path));
  }
});

test("readQcow2Header() replaces control characters in file names", async (dir) => {
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
  assertEquals((await readQcow2Header(path)).backingFile, "?ase.qcow2");
});

test("readQcow2Header() accepts a disk as large as its tables cover, and rejects one sector more", async (dir) => {
  const path = join(dir, "a.qcow2");
  await qemuImg("create", "-q", "-f", "qcow2", path, "512M");
  assertEquals((await readQcow2Header(path)).virtualSize, 512 * MiB);
  await patch(path, 24, [0, 0, 0, 0, 0x20, 0, 2, 0]);
  const { message } = await rejects("image_invalid", readQcow2Header(path));
  assert(message.includes("too small for its disk"), message);
});
