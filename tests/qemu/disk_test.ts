import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { assertDiskChain, prepareDisk } from "../../lib/qemu/disk.ts";
import { startMachine } from "../../lib/qemu/machine.ts";
import { makeMachineDir } from "../../lib/qemu/machine_dir.ts";
import { run } from "../../lib/system/process.ts";
import { inspectQcow2 } from "../../lib/image/qcow2.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { needs, parts } from "../support/parts.ts";
import type { Qmp } from "../../lib/qemu/qmp.ts";
import { drive } from "../support/fake_start.ts";

const needsQemuImg = needs("qemuImg");

async function create(...args: string[]) {
  const { code, stderr } = await run("qemu-img", {
    args: ["create", "-q", "-f", "qcow2", ...args],
  });
  assertEquals(code, 0, stderr);
}

Deno.test({
  name: "an image alone is a disk whose changes are thrown away",
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
  name: "an overlay is made once, and used again",
  ...needsQemuImg,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "a.qcow2");
    const overlay = join(dir.path, "mine, too.qcow2");
    await create(image, "1M");
    const disk = await prepareDisk(image, overlay);
    assertEquals(disk, { disk: overlay, ephemeral: false });
    assertEquals((await inspectQcow2(overlay)).backingFile, image);
    const before = await Deno.readFile(overlay);
    await prepareDisk(image, overlay);
    assertEquals(await Deno.readFile(overlay), before);
    const names = Array.from(Deno.readDirSync(dir.path), (it) => it.name);
    assertEquals(names.sort(), ["a.qcow2", "mine, too.qcow2"]);
  },
});

Deno.test({
  name: "a file that is no overlay of the image is left alone",
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
      const error = await failure(
        "image_unsafe",
        () => prepareDisk(image, path),
      );
      assert(error.message.includes(path));
    }
  },
});

Deno.test({
  name: "an image that refers to other files never reaches QEMU",
  ...needsQemuImg,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "a.qcow2");
    await create("-b", "/etc/passwd", "-F", "raw", image, "1M");
    const error = await failure("image_unsafe", () => prepareDisk(image));
    assert(error.message.includes("/etc/passwd"));
    await failure(
      "image_unsafe",
      () => prepareDisk(image, join(dir.path, "over.qcow2")),
    );
  },
});

Deno.test("an image that is not there, or is none, is refused", async () => {
  await using dir = await temporaryDir();
  const image = join(dir.path, "a.qcow2");
  await failure("source_not_found", () => prepareDisk(image));
  await Deno.writeTextFile(image, "not a disk");
  await failure("image_invalid", () => prepareDisk(image));
});

Deno.test({
  name: "a disk that was replaced between its check and its use is noticed",
  ...needs("qemu", "qemuImg"),
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
      await using machine = await startMachine({
        ...{ program: parts.qemu!, disk: at(disk), ephemeral, env },
        ...{ accelerator: "tcg", dir: await makeMachineDir(env), memory: 64 },
        ...{ cpus: 1, shares: [], extra: [] },
      });
      await assertDiskChain(machine.qmp, files, { ephemeral });
    };
    await check("image, of a disk.qcow2", [image]);
    for (const ephemeral of [true, false]) {
      await check("good.qcow2", [at("good.qcow2"), image], ephemeral);
      const files = [at("bad.qcow2"), image];
      const error = await failure(
        "image_unsafe",
        () => check("bad.qcow2", files, ephemeral),
      );
      assert(error.message.includes(at("secret.qcow2")), error.message);
    }
    const outside = [at("external.qcow2")];
    await failure("image_unsafe", () => check("external.qcow2", outside));
  },
});

Deno.test({
  name: "of two first runs with one overlay, none loses the other's disk",
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

Deno.test("the files that QEMU has opened are those of the disk, each, in their order", async () => {
  const check = (blocks: unknown[], files: string[], ephemeral = false) => {
    const qmp = { send: () => Promise.resolve([blocks]) } as unknown as Qmp;
    return assertDiskChain(qmp, files, { ephemeral });
  };
  const seed = { device: "seed", inserted: { image: { filename: "/seed" } } };
  await check([seed, drive("/a", "/b")], ["/a", "/b"]);
  await check([drive("/x/../a")], ["/a"]);
  await check([drive("/tmp/vl", "/a")], ["/a"], true);
  const external = {
    filename: "/a",
    "format-specific": { data: { "data-file": "/secret" } },
  };
  const wrong: [unknown[], boolean?][] = [
    [[drive("/b", "/a")]],
    [[drive("/a", "/b", "/c")]],
    [[drive("/a")]],
    [[drive("/tmp/vl", "/a", "/b")]],
    [[drive("/a", "/b")], true],
    [[{ device: "disk", inserted: { image: external } }]],
    [[{ device: "disk" }]],
    [[seed]],
  ];
  for (const [blocks, ephemeral] of wrong) {
    const error = await failure(
      "image_unsafe",
      () => check(blocks, ["/a", "/b"], ephemeral),
    );
    assertEquals(error.hint, "only these belong to it: /a, /b");
  }
  const opened = [{ device: "disk", inserted: { image: external } }];
  const { message } = await failure(
    "image_unsafe",
    () => check(opened, ["/a"]),
  );
  assertEquals(
    message,
    "The disk is not what it was: QEMU has opened /a, /secret",
  );
});

Deno.test({
  name: "what is wrong with a disk is said with what to do",
  ...needsQemuImg,
  async fn() {
    await using dir = await temporaryDir();
    const at = (name: string) => join(dir.path, name);
    const [image, plain, over] = ["a", "plain", "over"].map((it) => at(it));
    await create(image, "1M");
    await create(plain, "1M");
    const based = (why: string) =>
      `${plain} is not an overlay of ${image}: it is based on ${why}`;
    const none = await failure("image_unsafe", () => prepareDisk(image, plain));
    assertEquals(none.message, based("nothing"));
    assertEquals(
      none.hint,
      "name another file for --overlay, or remove this one",
    );
    const unmade = join(dir.path, "none", "over");
    const error = await failure(
      "boot_failed",
      () => prepareDisk(image, unmade),
    );
    assert(error.message.startsWith(`Cannot make the overlay ${unmade}: `));
    const gone = await failure("source_not_found", () => prepareDisk(at("x")));
    assertEquals(gone.message, `No such image: ${at("x")}`);
    const raw = ["-o", `data_file=${at("raw")}`, "-b", image, "-F", "qcow2"];
    await create(...raw, over, "1M");
    await failure("image_unsafe", () => prepareDisk(image, over));
    const names = Array.from(Deno.readDirSync(dir.path), ({ name }) => name);
    assertEquals(names.filter((name) => name.startsWith(".")), []);
  },
});

Deno.test({
  name: "an encrypted image is refused before QEMU asks for its key",
  ...needsQemuImg,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "a.qcow2");
    await create(image, "1M");
    const bytes = await Deno.readFile(image);
    // Its header's crypt_method (QEMU, docs/interop/qcow2): AES.
    new DataView(bytes.buffer).setUint32(32, 1);
    await Deno.writeFile(image, bytes);
    const error = await failure("image_invalid", () => prepareDisk(image));
    assertEquals(error.message, `${image} is encrypted`);
    assertEquals(
      error.hint,
      "decrypt it with qemu-img convert before it is published",
    );
  },
});
