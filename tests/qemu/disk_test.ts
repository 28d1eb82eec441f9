import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { assertBackingChain, prepareDisk } from "../../lib/qemu/disk.ts";
import { startQemu } from "../../lib/qemu/qemu_process.ts";
import { runProcess } from "../../lib/system/process.ts";
import { readQcow2Header } from "../../lib/image/qcow2_header.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { foundTools, requires } from "../support/parts.ts";
import type { QmpConnection } from "../../lib/qemu/qmp.ts";
import { qemuDrive } from "../support/fake_vm.ts";

const needsQemuImg = requires("qemuImg");

async function create(...args: string[]) {
  const { code, stderr } = await runProcess("qemu-img", {
    args: ["create", "-q", "-f", "qcow2", ...args],
  });
  assertEquals(code, 0, stderr);
}

Deno.test({
  name:
    "prepareDisk() without an overlay returns the image as an ephemeral disk",
  ...needsQemuImg,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "a.qcow2");
    await create(image, "1M");
    const disk = await prepareDisk(image);
    assertEquals(disk, { disk: image, ephemeral: true });
  },
});

Deno.test({
  name: "prepareDisk() creates a missing overlay and reuses an existing one",
  ...needsQemuImg,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "a.qcow2");
    const overlay = join(dir.path, "mine, too.qcow2");
    await create(image, "1M");
    const disk = await prepareDisk(image, overlay);
    assertEquals(disk, { disk: overlay, ephemeral: false });
    assertEquals((await readQcow2Header(overlay)).backingFile, image);
    const before = await Deno.readFile(overlay);
    await prepareDisk(image, overlay);
    assertEquals(await Deno.readFile(overlay), before);
    const names = Array.from(Deno.readDirSync(dir.path), (it) => it.name);
    assertEquals(names.sort(), ["a.qcow2", "mine, too.qcow2"]);
  },
});

Deno.test({
  name: "prepareDisk() rejects a file that is not an overlay of the image",
  ...needsQemuImg,
  async fn() {
    await using dir = await temporaryDir();
    const [image, other, overlay, plain] = ["a", "b", "over", "plain"]
      .map((name) => join(dir.path, `${name}.qcow2`));
    await create(image, "1M");
    await create(other, "1M");
    await create("-b", other, "-F", "qcow2", overlay);
    await create(plain, "1M");
    for (const path of [overlay, plain]) {
      const error = await expectFailure(
        "image_unsafe",
        () => prepareDisk(image, path),
      );
      assert(error.message.includes(path));
    }
  },
});

Deno.test({
  name: "prepareDisk() rejects an image with a backing file",
  ...needsQemuImg,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "a.qcow2");
    await create("-b", "/etc/passwd", "-F", "raw", image, "1M");
    const error = await expectFailure("image_unsafe", () => prepareDisk(image));
    assert(error.message.includes("/etc/passwd"));
    await expectFailure(
      "image_unsafe",
      () => prepareDisk(image, join(dir.path, "over.qcow2")),
    );
  },
});

Deno.test("prepareDisk() rejects a missing image and a file that is not QCOW2", async () => {
  await using dir = await temporaryDir();
  const image = join(dir.path, "a.qcow2");
  await expectFailure("source_not_found", () => prepareDisk(image));
  await Deno.writeTextFile(image, "not a disk");
  await expectFailure("image_invalid", () => prepareDisk(image));
});

Deno.test({
  name:
    "assertBackingChain() rejects disk files that QEMU opened after they were replaced",
  ...requires("qemu", "qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const at = (name: string) => join(dir.path, name);
    const image = at("image, of a disk.qcow2");
    await create(image, "8M");
    await create(at("secret.qcow2"), "8M");
    await create("-b", image, "-F", "qcow2", at("good.qcow2"));
    await create("-b", at("secret.qcow2"), "-F", "qcow2", at("bad.qcow2"));
    const raw = ["-o", `data_file=${at("secret.raw")},data_file_raw=on`];
    await create(...raw, at("external.qcow2"), "8M");
    const check = async (disk: string, files: string[], ephemeral = true) => {
      const env = new Map([["TMPDIR", dir.path]]);
      await using machine = await startQemu({
        ...{ program: foundTools.qemu!, disk: at(disk), ephemeral, env },
        ...{ accelerator: "tcg", memory: 64 },
        ...{ cpus: 1, shares: [], extra: [] },
      });
      const opened = { disk: files[0], ephemeral };
      await assertBackingChain(machine.qmp, opened, files.at(-1)!);
    };
    await check("image, of a disk.qcow2", [image]);
    for (const ephemeral of [true, false]) {
      await check("good.qcow2", [at("good.qcow2"), image], ephemeral);
      const files = [at("bad.qcow2"), image];
      const error = await expectFailure(
        "image_unsafe",
        () => check("bad.qcow2", files, ephemeral),
      );
      assert(error.message.includes(at("secret.qcow2")), error.message);
    }
    const outside = [at("external.qcow2")];
    await expectFailure("image_unsafe", () => check("external.qcow2", outside));
  },
});

Deno.test({
  name: "prepareDisk() creates one overlay when eight calls race",
  ...needsQemuImg,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "a.qcow2");
    await create(image, "1M");
    const overlay = join(dir.path, "kept.qcow2");
    const inodes = new Set<number | null>();
    const first = async () => {
      await prepareDisk(image, overlay);
      inodes.add((await Deno.stat(overlay)).ino);
    };
    await Promise.all(Array.from({ length: 8 }, first));
    assertEquals(inodes.size, 1);
    const left = Array.from(Deno.readDirSync(dir.path), ({ name }) => name);
    assertEquals(left.sort(), ["a.qcow2", "kept.qcow2"]);
  },
});

Deno.test("assertBackingChain() compares QEMU's open files with the expected chain, in order", async () => {
  const check = (blocks: unknown[], files: string[], ephemeral = false) => {
    const qmp = {
      execute: () => Promise.resolve([blocks]),
    } as unknown as QmpConnection;
    const opened = { disk: files[0], ephemeral };
    return assertBackingChain(qmp, opened, files.at(-1)!);
  };
  const seed = { device: "seed", inserted: { image: { filename: "/seed" } } };
  await check([seed, qemuDrive("/a", "/b")], ["/a", "/b"]);
  await check([qemuDrive("/x/../a")], ["/a"]);
  await check([qemuDrive("/tmp/vl", "/a")], ["/a"], true);
  const external = {
    filename: "/a",
    "format-specific": { data: { "data-file": "/secret" } },
  };
  const wrong: [unknown[], boolean?][] = [
    [[qemuDrive("/b", "/a")]],
    [[qemuDrive("/a", "/b", "/c")]],
    [[qemuDrive("/a")]],
    [[qemuDrive("/tmp/vl", "/a", "/b")]],
    [[qemuDrive("/a", "/b")], true],
    [[{ device: "disk", inserted: { image: external } }]],
    [[{ device: "disk" }]],
    [[seed]],
  ];
  for (const [blocks, ephemeral] of wrong) {
    const error = await expectFailure(
      "image_unsafe",
      () => check(blocks, ["/a", "/b"], ephemeral),
    );
    assertEquals(error.hint, "restore the expected files: /a, /b");
  }
  const opened = [{ device: "disk", inserted: { image: external } }];
  const { message } = await expectFailure(
    "image_unsafe",
    () => check(opened, ["/a"]),
  );
  assertEquals(
    message,
    "QEMU opened unexpected disk files: /a, /secret",
  );
});

Deno.test({
  name: "prepareDisk() reports each disk problem with a hint",
  ...needsQemuImg,
  async fn() {
    await using dir = await temporaryDir();
    const at = (name: string) => join(dir.path, name);
    const [image, plain, over] = ["a", "plain", "over"].map((it) => at(it));
    await create(image, "1M");
    await create(plain, "1M");
    const based = (why: string) =>
      `${plain} is not an overlay of ${image}: its backing file is ${why}`;
    const none = await expectFailure(
      "image_unsafe",
      () => prepareDisk(image, plain),
    );
    assertEquals(none.message, based("none"));
    assertEquals(
      none.hint,
      "pass another file with --overlay, or remove the existing file",
    );
    const unmade = join(dir.path, "none", "over");
    const error = await expectFailure(
      "boot_failed",
      () => prepareDisk(image, unmade),
    );
    assert(error.message.startsWith(`Cannot create the overlay ${unmade}: `));
    const gone = await expectFailure(
      "source_not_found",
      () => prepareDisk(at("x")),
    );
    assertEquals(gone.message, `Image not found: ${at("x")}`);
    const raw = ["-o", `data_file=${at("raw")}`, "-b", image, "-F", "qcow2"];
    await create(...raw, over, "1M");
    await expectFailure("image_unsafe", () => prepareDisk(image, over));
    const names = Array.from(Deno.readDirSync(dir.path), ({ name }) => name);
    assertEquals(names.filter((name) => name.startsWith(".")), []);
  },
});

Deno.test({
  name: "prepareDisk() rejects an encrypted image",
  ...needsQemuImg,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "a.qcow2");
    await create(image, "1M");
    const bytes = await Deno.readFile(image);
    // The header's crypt_method (QEMU, docs/interop/qcow2): AES.
    new DataView(bytes.buffer).setUint32(32, 1);
    await Deno.writeFile(image, bytes);
    const error = await expectFailure(
      "image_invalid",
      () => prepareDisk(image),
    );
    assertStringIncludes(error.message, `${image} is encrypted (aes)`);
    assertEquals(
      error.hint,
      "use an unencrypted copy, made with qemu-img convert",
    );
  },
});
