import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { dirname, join } from "@std/path";
import { CHUNK_INDEX } from "../../lib/delta/chunk_index.ts";
import { inspectImage } from "../../lib/image/inspect_image.ts";
import { readQcow2Header } from "../../lib/image/qcow2_header.ts";
import { runProcess } from "../../lib/system/process.ts";
import { foundTools, requires } from "../support/parts.ts";
import { mountTmpfs } from "../support/tmpfs.ts";
import { startProxy } from "../support/proxy.ts";
import { assertErrorCode, attemptPublish } from "../support/publication.ts";
import {
  publishUpdatedImage,
  type UpdatedImage,
} from "../support/updated_image.ts";
import { makeQcow2, testWithImage as test } from "../support/workspace.ts";

const REAL = requires("oras", "registry", "qemuImg");

let image: UpdatedImage;
Deno.test.beforeAll(async () => {
  if (!REAL.ignore) image = await publishUpdatedImage();
});
Deno.test.afterAll(async () => {
  await image?.[Symbol.asyncDispose]();
});

/** Sets the temporary directory until it is disposed. */
function temporaryDirIs(path: string): Disposable {
  const before = Deno.env.get("TMPDIR");
  Deno.env.set("TMPDIR", path);
  return {
    [Symbol.dispose]() {
      if (before === undefined) Deno.env.delete("TMPDIR");
      else Deno.env.set("TMPDIR", before);
    },
  };
}

/** Lists what is attached to a manifest, as oras finds it. */
async function attached(repository: string, digest: string) {
  const { code, stdout, stderr } = await runProcess(foundTools.oras!, {
    args: ["discover", "--plain-http", "--format", "json"]
      .concat(`${image.registry.host}/${repository}@${digest}`),
  });
  assertEquals(code, 0, stderr);
  const { referrers } = JSON.parse(stdout);
  return referrers as { artifactType: string; digest: string }[];
}

Deno.test({
  name:
    "publish() attaches one chunk index, the same for the same image however often it is published",
  ...REAL,
  async fn() {
    const { newer, registry: { host } } = image;
    const [index, ...more] = await attached("owner/image", newer.digest);
    assertEquals([index.artifactType, more], [CHUNK_INDEX.type, []]);
    for (const repository of ["owner/image", "other/image"]) {
      const target = `${host}/${repository}:3.0`;
      const { result, of } = await attemptPublish(newer.path, target);
      assertEquals(result.digest, newer.digest);
      assertEquals(of("warning"), []);
      const all = await attached(repository, newer.digest);
      assertEquals(all.map(({ digest }) => digest), [index.digest]);
    }
  },
});

Deno.test({
  name: "publish() attaches no chunk index with index: false, or below 64 MiB",
  ...REAL,
  async fn() {
    const { newer, dir, registry: { host } } = image;
    const large = `${host}/owner/large:1`;
    const index = false;
    const { result } = await attemptPublish(newer.path, large, { index });
    assertEquals(await attached("owner/large", result.digest), []);
    const { path } = await makeQcow2(join(dir, "small.qcow2"));
    const small = await attemptPublish(path, `${host}/owner/small:1`);
    assertEquals(await attached("owner/small", small.result.digest), []);
  },
});

Deno.test({
  name: "publish() warns if the registry refuses the chunk index",
  ...REAL,
  async fn() {
    const { newer, registry } = image;
    await using proxy = startProxy(registry.host, [
      { match: /^PUT \S+\/manifests\/sha256/, status: 403 },
    ]);
    const target = `${proxy.host}/owner/refused:1`;
    const { result, of } = await attemptPublish(newer.path, target);
    assertEquals(result.digest, newer.digest);
    const [{ message }] = of("warning");
    assertMatch(
      message,
      /^cannot attach a chunk index, so every host will .+: /,
    );
  },
});

Deno.test({
  name: "publish() warns if the chunk index cannot be written",
  ...REAL,
  async fn() {
    const { newer, dir, registry: { host } } = image;
    using _tmp = temporaryDirIs(join(dir, "missing"));
    const target = `${host}/owner/unwritten:1`;
    const { result, of } = await attemptPublish(newer.path, target);
    assertEquals(result?.digest, newer.digest);
    assertStringIncludes(of("warning")[0].message, "attach a chunk index");
  },
});

Deno.test({
  name:
    "publish() predicts from a file or a reference what hosts with the previous version download",
  ...REAL,
  async fn() {
    const { older, newer, size, changedBytes, registry: { host } } = image;
    const found = [];
    for (const previous of [older.path, `${host}/owner/image:1.0`]) {
      const target = `${host}/owner/predicted:1`;
      // A prediction needs no index in the registry.
      const how = { previous, index: previous !== older.path };
      const { of } = await attemptPublish(newer.path, target, how);
      const [{ from, bytes, total }] = of("update_predicted");
      assertEquals(total, size);
      assert(bytes >= changedBytes && bytes < size / 50, `${bytes}`);
      assertEquals(of("warning"), []);
      found.push({ from, bytes });
    }
    const [file, reference] = found;
    assertEquals([file.from, reference.from], ["image.qcow2", "1.0"]);
    assertEquals(file.bytes, reference.bytes);
  },
});

Deno.test({
  name:
    "publish() says what makes updates small if most of an image differs from the previous one",
  ...REAL,
  async fn() {
    const { newer, dir, size, registry: { host } } = image;
    const { path } = await makeQcow2(join(dir, "else.qcow2"));
    const { of, result } = await attemptPublish(
      newer.path,
      `${host}/owner/image:4.0`,
      { previous: path },
    );
    assert(of("update_predicted")[0].bytes > size * 0.99);
    const [{ message }] = of("warning");
    assertStringIncludes(message, "cluster_size=4k");
    assert(!message.includes("\n"));
    assertEquals(result.digest, newer.digest);
  },
});

Deno.test({
  name:
    "publish() rejects a previous reference without a chunk index before it pushes",
  ...REAL,
  async fn() {
    const { newer, dir, registry: { host } } = image;
    const { path } = await makeQcow2(join(dir, "plain.qcow2"));
    const previous = `${host}/owner/plain:1`;
    await attemptPublish(path, previous);
    const target = `${host}/owner/plain:2`;
    const { error, of } = await attemptPublish(newer.path, target, {
      previous,
    });
    const { hint } = assertErrorCode(error, "payload_missing");
    assertStringIncludes(hint!, "--previous FILE");
    assertEquals(of("publish_start"), []);
    const missing = await attemptPublish(newer.path, target, {
      previous: `${host}/owner/missing:1`,
    });
    assertErrorCode(missing.error, "not_found");
  },
});

test("publish() reports a previous image that is no file, and asks no registry for it", async ({ dir, image, host }) => {
  for (
    const [previous, code] of [
      [join(dir, "missing"), "source_not_found"],
      ["dist/missing.qcow2", "source_not_found"],
      ["./missing", "source_not_found"],
      [dir, "file_unreadable"],
    ] as const
  ) {
    const target = `${host}/owner/vm:1`;
    const { error, of } = await attemptPublish(image, target, { previous });
    const { message } = assertErrorCode(error, code);
    assertStringIncludes(message, `Cannot read previous image ${previous}: `);
    assertEquals(of("publish_start"), []);
  }
});

test("publish() with compress pushes the same compressed copy each time, and removes it", async (bench) => {
  const { dir, host } = bench;
  const raw = join(dir, "raw");
  const line = "All work and no play makes a dull image.\n";
  await Deno.writeTextFile(raw, line.repeat(200_000));
  const path = join(dir, "text.qcow2");
  await qemuImg("convert", "-O", "qcow2", "-o", "cluster_size=4k", raw, path);
  const before = await Deno.stat(path);
  const publish = (tag: string) =>
    attemptPublish(path, `${host}/owner/vm:${tag}`, { compress: true });
  const { result, of } = await publish("1");
  assertEquals(of("compress_start")[0].path, path);
  assert(result.bytes < before.size / 4, `${result.bytes}`);
  assertEquals(result.file, "text.qcow2");
  assertEquals((await publish("2")).result.digest, result.digest);
  const blob = await fetch(
    `http://${host}/v2/owner/vm/blobs/${result.layerDigest}`,
  );
  const copy = join(dir, "copy.qcow2");
  await Deno.writeFile(copy, await blob.bytes());
  assertEquals((await inspectImage(copy)).compressed, true);
  const { compression, clusterSize } = await readQcow2Header(copy);
  assertEquals([compression, clusterSize], ["zstd", 4096]);
  await qemuImg("compare", path, copy);
  assertEquals((await Deno.stat(path)).mtime, before.mtime);
});

test("publish() with compress rejects a missing qemu-img, a damaged image, and one with a backing file", async (bench) => {
  const { dir, image, host } = bench;
  const target = `${host}/owner/vm:1`;
  const compress = true;
  const env = new Map([
    ["TOOLSMITH_QEMU", join(dir, "nothing", "qemu-system-x86_64")],
    ["TOOLSMITH_ORAS", foundTools.oras!],
  ]);
  const missing = await attemptPublish(image, target, { compress, env });
  assertErrorCode(missing.error, "qemu_not_found");

  const overlay = join(dirname(image), "overlay.qcow2");
  await qemuImg("create", "-f", "qcow2", "-F", "qcow2", "-b", image, overlay);
  const backed = await attemptPublish(overlay, target, { compress });
  assertErrorCode(backed.error, "image_unsafe");

  const packed = join(dir, "packed.qcow2");
  const text = join(dir, "text");
  await Deno.writeTextFile(text, "All work and no play. ".repeat(100_000));
  await qemuImg("convert", "-c", "-O", "qcow2", text, packed);
  {
    using file = await Deno.open(packed, { write: true });
    await file.seek(-20_000, Deno.SeekMode.End);
    await file.write(new Uint8Array(20_000).fill(255));
  }
  const damaged = await attemptPublish(packed, target, { compress });
  const { message } = assertErrorCode(damaged.error, "image_invalid");
  assertStringIncludes(message, `Cannot compress ${packed}: `);
  assertEquals(damaged.of("publish_start"), []);
});

test("publish() with compress rejects a malformed target before it compresses", async (bench) => {
  const options = { compress: true };
  const { error, of } = await attemptPublish(bench.image, "nowhere", options);
  assertErrorCode(error, "reference_invalid");
  assertEquals(of("compress_start"), []);
});

test("publish() with compress rejects a copy that differs from the image", async (bench) => {
  const { dir, image, host } = bench;
  const script = [
    "#!/bin/sh",
    '[ "$1" = convert ] || exec qemu-img "$@"',
    "for copy; do :; done",
    'exec qemu-img create -q -f qcow2 "$copy" 1M',
  ];
  await Deno.writeTextFile(join(dir, "qemu-img"), script.join("\n"));
  await Deno.chmod(join(dir, "qemu-img"), 0o755);
  const env = new Map([
    ["TOOLSMITH_QEMU", join(dir, "qemu-system-x86_64")],
    ["TOOLSMITH_ORAS", foundTools.oras!],
  ]);
  const target = `${host}/owner/vm:1`;
  const options = { compress: true, env };
  const { error, of } = await attemptPublish(image, target, options);
  const { message } = assertErrorCode(error, "image_invalid");
  assertStringIncludes(message, `Cannot compress ${image}: `);
  assertEquals(of("publish_start"), []);
});

Deno.test({
  name: "publish() with compress reports a full temporary directory",
  ...requires("root", "oras", "registry", "qemuImg"),
  async fn() {
    const { newer, dir, registry: { host } } = image;
    const small = join(dir, "small");
    await Deno.mkdir(small);
    await using _mounted = await mountTmpfs(small, "8m");
    using _tmp = temporaryDirIs(small);
    const target = `${host}/owner/full:1`;
    const { error } = await attemptPublish(newer.path, target, {
      compress: true,
    });
    const { hint } = assertErrorCode(error, "disk_full");
    assertStringIncludes(hint!, "set TMPDIR");
  },
});

async function qemuImg(command: string, ...args: string[]) {
  const all = [command, "-q", ...args];
  const { code, stderr, stdout } = await runProcess("qemu-img", { args: all });
  assertEquals(code, 0, stderr + stdout);
}
