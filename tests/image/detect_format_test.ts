import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { inspectImage } from "../../lib/image/inspect_image.ts";
import {
  detectNonQcow2Format,
  notQcow2Error,
} from "../../lib/image/detect_format.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { requires } from "../support/parts.ts";
import { makeQcow2 } from "../support/workspace.ts";

const bytes = (text: string) =>
  Uint8Array.from(text, (letter) => letter.charCodeAt(0));

Deno.test("detectNonQcow2Format() recognizes text and archive formats by their first bytes", () => {
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
    assertEquals(
      detectNonQcow2Format(bytes(text))?.format,
      is,
      JSON.stringify(text),
    );
  }
});

Deno.test("notQcow2Error() suggests a decompress command for a URL and for a file", () => {
  const gzip = bytes("\x1f\x8b");
  const { code, message, hint } = notQcow2Error(gzip, "https://x.test/a'b.gz");
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
    notQcow2Error(gzip, "dist/a.gz").hint,
    "decompress the image: gunzip <IMAGE >IMAGE.qcow2",
  );
});

Deno.test({
  name:
    "inspectImage() names the format of a disk image that qemu-img can convert",
  ...requires("qemuImg"),
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
      assertEquals((await runProcess("qemu-img", { args })).code, 0);
      const { message, hint } = await expectFailure(
        "image_invalid",
        () => inspectImage(other),
      );
      assertEquals(message, `${other} is not a QCOW2 image: it is ${is}`);
      assert(hint?.includes("qemu-img convert -O qcow2"), hint);
    }
  },
});

Deno.test("inspectImage() recognizes a raw disk by its boot signature", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "a.raw");
  const disk = new Uint8Array(4096);
  disk.set([0x55, 0xaa], 510);
  await Deno.writeFile(path, disk);
  const { message, hint } = await expectFailure(
    "image_invalid",
    () => inspectImage(path),
  );
  assertEquals(message, `${path} is not a QCOW2 image: it is a raw disk`);
  assert(hint?.includes("qemu-img convert -f raw -O qcow2"), hint);
});
