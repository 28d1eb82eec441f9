import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { writeOverlay } from "../../lib/image/overlay.ts";
import { readQcow2Header } from "../../lib/image/qcow2_header.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { requires } from "../support/parts.ts";

const TIB = 2 ** 40;

/** Runs a QEMU tool, which must succeed. */
async function must(program: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await runProcess(program, { args });
  assertEquals(code, 0, stdout + stderr);
  return stdout;
}

function test(name: string, body: (dir: string) => Promise<void>) {
  Deno.test({
    name,
    ...requires("qemuImg"),
    async fn() {
      await using dir = await temporaryDir();
      await body(dir.path);
    },
  });
}

test("writeOverlay() creates an overlay that QEMU reads and writes", async (dir) => {
  const image = join(dir, "an image, ü.qcow2");
  // The second overlay's tables take more than one cluster.
  for (const size of [10 * 2 ** 20 + 512, 5 * TIB]) {
    const overlay = join(dir, `${size}.qcow2`);
    const options = ["-o", "cluster_size=2M", image, `${size}`];
    await must("qemu-img", "create", "-q", "-f", "qcow2", ...options);
    await must("qemu-io", "-c", "write -P 7 64k 64k", image);
    await writeOverlay(overlay, image);
    await must("qemu-img", "check", "-q", overlay);
    const header = new DataView((await Deno.readFile(overlay)).buffer);
    // Cluster bits, L1 entries, header length.
    assertEquals([20, 36, 100].map((at) => header.getUint32(at)), [
      ...[16, Math.ceil(size / 2 ** 29), 104],
    ]);
    // Extensions, padded to 8 bytes, end before the backing file name.
    assertEquals(header.getBigUint64(8), 128n);
    const info = await must("qemu-img", "info", "--output=json", overlay);
    const { "virtual-size": virtual, ...rest } = JSON.parse(info);
    assertEquals(virtual, size);
    assertEquals(rest["backing-filename"], image);
    assertEquals(rest["backing-filename-format"], "qcow2");
    const end = size - 64 * 2 ** 10;
    await must("qemu-io", "-c", `write -P 9 ${end} 4k`, overlay);
    const reads = ["-c", "read -P 7 64k 64k", "-c", `read -P 9 ${end} 4k`];
    await must("qemu-io", ...reads, overlay);
    await must("qemu-img", "check", "-q", overlay);
    assertEquals((await readQcow2Header(image)).virtualSize, size);
    await Deno.remove(image);
  }
});

test("writeOverlay() creates a private file, and does not replace an existing one", async (dir) => {
  const [image, overlay] = ["a", "b"].map((it) => join(dir, `${it}.qcow2`));
  await must("qemu-img", "create", "-q", "-f", "qcow2", image, "1M");
  await writeOverlay(overlay, image);
  assertEquals((await Deno.stat(overlay)).mode! & 0o777, 0o600);
  const before = await Deno.readFile(overlay);
  await assertRejects(
    () => writeOverlay(overlay, image),
    Deno.errors.AlreadyExists,
  );
  assertEquals(await Deno.readFile(overlay), before);
});

test("writeOverlay() rejects an image that is not QCOW2 or whose path is too long", async (dir) => {
  const deep = join(dir, ...Array.from({ length: 4 }, () => "d".repeat(200)));
  await Deno.mkdir(deep, { recursive: true });
  const named = (length: number) =>
    join(deep, "i".repeat(length - deep.length - 1));
  const overlay = join(dir, "overlay");
  for (const length of [1023, 1024]) {
    await must("qemu-img", "create", "-q", "-f", "qcow2", named(length), "1M");
  }
  await writeOverlay(overlay, named(1023));
  assertEquals((await readQcow2Header(overlay)).backingFile, named(1023));
  const long = await expectFailure(
    "usage",
    () => writeOverlay(join(dir, "other"), named(1024)),
  );
  assertEquals(long.hint, "move the image to a path of at most 1023 bytes");
  await Deno.writeTextFile(join(dir, "text"), "no image");
  await expectFailure(
    "image_invalid",
    () => writeOverlay(join(dir, "other"), join(dir, "text")),
  );
});
