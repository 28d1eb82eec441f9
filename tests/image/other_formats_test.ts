import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { inspectImage } from "../../lib/image/inspect.ts";
import { notQcow2, otherFormat } from "../../lib/image/other_formats.ts";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { needs } from "../support/parts.ts";
import { makeQcow2 } from "../support/workspace.ts";

const bytes = (text: string) =>
  Uint8Array.from(text, (letter) => letter.charCodeAt(0));

Deno.test("otherFormat() tells texts and archives by how they begin", () => {
  const cases: [string, string | undefined][] = [
    ["\x1f\x8b\x08\0", "compressed with gzip"],
    ["\xfd7zXZ\0\0\x04", "compressed with xz"],
    ["\x28\xb5\x2f\xfd\x04", "compressed with zstd"],
    ["BZh91AY", "compressed with bzip2"],
    ["PK\x03\x04\x14\0", "a ZIP archive"],
    [`${"a".padEnd(257, "\0")}ustar`, "a tar archive"],
    ["<!DOCTYPE html><title>Log in</title>", "an HTML page"],
    ["\xef\xbb\xbf\r\n <HTML lang=de>", "an HTML page"],
    ["<html>", "an HTML page"],
    ['<?xml version="1.0"?><Error>', "XML text"],
    ["<Error><Code>AccessDenied</Code>", "XML text"],
    ['{"errors":[]}', "JSON text"],
    ["[\n  {", "JSON text"],
    ["{}", "JSON text"],
    ["", "empty"],
    ["QFI\xfb\0\0\0\x03", undefined],
    ["plain words", undefined],
    ["{ words", undefined],
    ["<< words", undefined],
  ];
  for (const [text, is] of cases) {
    assertEquals(otherFormat(bytes(text))?.is, is, JSON.stringify(text));
  }
});

Deno.test("notQcow2() says how to decompress an image, of an address and of a file", () => {
  const gzip = bytes("\x1f\x8b");
  const { code, message, hint } = notQcow2(gzip, "https://x.test/a'b.gz");
  assertEquals(code, "image_invalid");
  assertEquals(
    message,
    "https://x.test/a'b.gz is not a QCOW2 image: it is compressed with gzip",
  );
  assertEquals(
    hint,
    "decompress the image: curl -L 'https://x.test/a'\\''b.gz' | gunzip >IMAGE.qcow2",
  );
  assertEquals(
    notQcow2(gzip, "dist/a.gz").hint,
    "decompress the image: gunzip <IMAGE >IMAGE.qcow2",
  );
});

Deno.test({
  name: "inspectImage() names the format of a disk that qemu-img converts",
  ...needs("qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const { path } = await makeQcow2(join(dir.path, "a.qcow2"), 65536);
    const kinds = [
      ["vmdk", "a VMDK image"],
      ["vdi", "a VDI image"],
      ["vhdx", "a VHDX image"],
    ];
    for (const [format, is] of kinds) {
      const other = join(dir.path, `a.${format}`);
      const args = ["convert", "-O", format, path, other];
      assertEquals((await run("qemu-img", { args })).code, 0);
      const { message, hint } = await failure(
        "image_invalid",
        () => inspectImage(other),
      );
      assertEquals(message, `${other} is not a QCOW2 image: it is ${is}`);
      assert(hint?.includes("qemu-img convert -O qcow2"), hint);
    }
  },
});

Deno.test("inspectImage() names a raw disk, by the signature of its first sector", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "a.raw");
  const disk = new Uint8Array(4096);
  disk.set([0x55, 0xaa], 510);
  await Deno.writeFile(path, disk);
  const { message, hint } = await failure(
    "image_invalid",
    () => inspectImage(path),
  );
  assertEquals(message, `${path} is not a QCOW2 image: it is a raw disk`);
  assert(hint?.includes("qemu-img convert -f raw -O qcow2"), hint);
});
