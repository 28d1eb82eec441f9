import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { downloadHttpsImage } from "../../lib/hydrate/_https_download.ts";
import { pullFromRegistry } from "../../lib/hydrate/_registry_pull.ts";
import { fetchImage } from "../../lib/hydrate/fetch_image.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { openPartFile } from "../../lib/system/part_file.ts";
import { runProcess } from "../../lib/system/process.ts";
import { issueCertificate } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { setUpFetch } from "../support/fetch_setup.ts";
import { startHostileRegistry } from "../support/hostile_registry.ts";
import { foundTools, requires } from "../support/parts.ts";
import { startTlsServer } from "../support/tls_server.ts";

const MIB = 1024 * 1024;
const SHA256 = "0".repeat(64);
const { ignore: noTls } = requires("openssl");
const { ignore: noOras } = requires("oras");

/** Runs a test with a tmpfs of that size, if one can be mounted. */
function test(
  name: string,
  { mib, ignore = false }: { mib: number; ignore?: boolean },
  body: (disk: string, beside: string) => Promise<void>,
) {
  Deno.test({
    name,
    ignore: ignore || requires("root").ignore,
    async fn() {
      await using dir = await temporaryDir();
      const disk = join(dir.path, "disk");
      await Deno.mkdir(disk);
      const args = ["-t", "tmpfs", "-o", `size=${mib}m`, "tmpfs", disk];
      const { code } = await runProcess("mount", { args });
      // A container may not mount.
      if (code !== 0) return console.error("skipped: no tmpfs can be mounted");
      try {
        await body(disk, dir.path);
      } finally {
        await runProcess("umount", { args: ["--lazy", disk] });
      }
    },
  });
}

test("downloadHttpsImage() stops an endless body before the disk is full", {
  mib: 10,
  ignore: noTls,
}, async (disk, beside) => {
  const certificate = await issueCertificate(beside);
  await using server = await startTlsServer(certificate, async (it) => {
    await it.head(200, {});
    while (true) await it.body(new Uint8Array(65_536));
  });
  const url = new URL("/a.qcow2", server.url);
  const image = { source: { kind: "https" as const, url }, sha256: SHA256 };
  const { caFile } = certificate;
  const { job } = setUpFetch(image, disk, { caFile });
  const { message } = await expectFailure(
    "disk_full",
    () => downloadHttpsImage(job, url),
  );
  const why = `: ${MIB} bytes and 8 MiB spare needed, \\d+ free$`;
  assertMatch(message, new RegExp(why));
  const { size } = await Deno.stat(join(disk, "a.qcow2"));
  assert(size >= MIB && size <= 3 * MIB, `${size}`);
});

test("fetchImage() does not copy a local image that exceeds the free space", {
  mib: 10,
}, async (disk, beside) => {
  const path = join(beside, "a.qcow2");
  const copy = () =>
    fetchImage({
      image: { name: "demo", source: { kind: "file", path } },
      dir: disk,
      emit: () => {},
    });
  // Holes need no space.
  await Deno.writeFile(path, new Uint8Array(MIB).fill(7));
  await Deno.truncate(path, 64 * MIB);
  assertEquals((await copy()).bytes, 64 * MIB);
  await Deno.remove(join(disk, "a.qcow2"));
  await Deno.writeFile(path, new Uint8Array(3 * MIB).fill(7));
  await expectFailure("disk_full", copy);
  assertEquals([...Deno.readDirSync(disk)], []);
});

test("downloadHttpsImage() requires free space only for the missing bytes", {
  mib: 12,
  ignore: noTls,
}, async (disk, beside) => {
  const certificate = await issueCertificate(beside);
  const { caFile } = certificate;
  let size = 4 * MIB;
  await using server = await startTlsServer(certificate, async (it) => {
    const from = Number(/\d+/.exec(it.headers.get("range") ?? "")?.[0] ?? 0);
    await it.head(from > 0 ? 206 : 200, {
      "content-length": size - from,
      "content-range": `bytes ${from}-${size - 1}/${size}`,
    });
    await it.body(new Uint8Array(size - from));
  });
  const url = new URL("/a.qcow2", server.url);
  const image = { source: { kind: "https" as const, url }, sha256: SHA256 };
  const { job } = setUpFetch(image, disk, { caFile });
  const download = async (kept: number) => {
    const digest = `sha256:${SHA256}`;
    {
      await using part = await openPartFile(disk, { size, digest });
      using writer = await part.openWriter();
      writer.write(0, new Uint8Array(kept).fill(7));
    }
    const { bytes } = await downloadHttpsImage(job, url);
    return bytes;
  };
  // The part records take two pages.
  size -= 16_384;
  assertEquals(await download(2 * MIB), size);
  await Deno.remove(join(disk, "image.part"));
  size += 32_768;
  await expectFailure("disk_full", () => download(2 * MIB));
});

test("pullFromRegistry() requires free space only for the missing bytes", {
  mib: 12,
  ignore: noOras,
}, async (disk, beside) => {
  await using registry = startHostileRegistry();
  const env = new Map(Object.entries(Deno.env.toObject()));
  env.set("TOOLSMITH_ORAS", foundTools.oras!).set("DOCKER_CONFIG", beside);
  const pull = async (size: number) => {
    const image = new Uint8Array(size).fill(size % 251);
    const annotations = { "org.opencontainers.image.title": "a.qcow2" };
    const layer = await registry.blob(image, { annotations });
    const config = await registry.blob(new TextEncoder().encode("{}"));
    await registry.manifest("1", { schemaVersion: 2, config, layers: [layer] });
    const digest = String(layer.digest);
    {
      await using part = await openPartFile(disk, { size, digest });
      using writer = await part.openWriter();
      writer.write(0, image.subarray(0, 2 * MIB));
    }
    const source = parseReference(`${registry.host}/owner/image:1`);
    const named = { source, sha256: digest.slice(7) };
    const { job } = setUpFetch(named, disk, { env });
    return (await pullFromRegistry(job, source)).bytes;
  };
  const limit = 4 * MIB;
  assertEquals(await pull(limit - 16_384), limit - 16_384);
  await Deno.remove(join(disk, "image.part"));
  await expectFailure("disk_full", () => pull(limit + 16_384));
});
