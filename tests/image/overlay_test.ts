import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { writeOverlay } from "../../lib/image/overlay.ts";
import { inspectQcow2 } from "../../lib/image/qcow2.ts";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { needs } from "../support/parts.ts";

const TIB = 2 ** 40;

/** Runs a program of QEMU's, which must be content. */
async function must(program: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(program, { args });
  assertEquals(code, 0, stdout + stderr);
  return stdout;
}

function test(name: string, body: (dir: string) => Promise<void>) {
  Deno.test({
    name,
    ...needs("qemuImg"),
    async fn() {
      await using dir = await temporaryDir();
      await body(dir.path);
    },
  });
}

test("QEMU reads an overlay through to its image, and keeps what is written", async (dir) => {
  const image = join(dir, "an image, ü.qcow2");
  // Of the second one, the tables of the overlay take more than one cluster.
  for (const size of [10 * 2 ** 20 + 512, 5 * TIB]) {
    const overlay = join(dir, `${size}.qcow2`);
    const options = ["-o", "cluster_size=2M", image, `${size}`];
    await must("qemu-img", "create", "-q", "-f", "qcow2", ...options);
    await must("qemu-io", "-c", "write -P 7 64k 64k", image);
    await writeOverlay(overlay, image);
    await must("qemu-img", "check", "-q", overlay);
    const header = new DataView((await Deno.readFile(overlay)).buffer);
    // Cluster bits, entries of the first table, length of the header.
    assertEquals([20, 36, 100].map((at) => header.getUint32(at)), [
      ...[16, Math.ceil(size / 2 ** 29), 104],
    ]);
    // Extensions, each of whole 8 bytes, end before the name of the image.
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
    assertEquals((await inspectQcow2(image)).virtualSize, size);
    await Deno.remove(image);
  }
});

test("an overlay is its owner's alone, and replaces no file", async (dir) => {
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

test("what cannot be below an overlay is refused", async (dir) => {
  const deep = join(dir, ...Array.from({ length: 4 }, () => "d".repeat(200)));
  await Deno.mkdir(deep, { recursive: true });
  const named = (length: number) =>
    join(deep, "i".repeat(length - deep.length - 1));
  const overlay = join(dir, "overlay");
  for (const length of [1023, 1024]) {
    await must("qemu-img", "create", "-q", "-f", "qcow2", named(length), "1M");
  }
  await writeOverlay(overlay, named(1023));
  assertEquals((await inspectQcow2(overlay)).backingFile, named(1023));
  const long = await failure(
    "usage",
    () => writeOverlay(join(dir, "other"), named(1024)),
  );
  assertEquals(long.hint, "a QCOW2 can name one of 1023 bytes");
  await Deno.writeTextFile(join(dir, "text"), "no image");
  await failure(
    "image_invalid",
    () => writeOverlay(join(dir, "other"), join(dir, "text")),
  );
});
