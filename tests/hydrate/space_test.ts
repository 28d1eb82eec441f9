import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { downloadImage } from "../../lib/hydrate/_download.ts";
import { pullFromRegistry } from "../../lib/hydrate/_registry.ts";
import { spool } from "../../lib/hydrate/_spool.ts";
import { fetchImage } from "../../lib/hydrate/fetch.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { openPart } from "../../lib/system/part_file.ts";
import { run } from "../../lib/system/process.ts";
import { writeAll } from "../../lib/system/streams.ts";
import { issueCertificate } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { fetching } from "../support/fetching.ts";
import { startHostileRegistry } from "../support/hostile_registry.ts";
import { needs, parts } from "../support/parts.ts";
import { startTlsServer } from "../support/tls_server.ts";

const MIB = 1024 * 1024;
/** Room that stays free, whatever is brought. */
const RESERVE = 8 * MIB;
const SHA256 = "0".repeat(64);
const { ignore: noTls } = needs("openssl");
const { ignore: noOras } = needs("oras");

/** Runs a test with a disk of so many MiB, where one can be mounted. */
function test(
  name: string,
  { mib, ignore = false }: { mib: number; ignore?: boolean },
  body: (disk: string, beside: string) => Promise<void>,
) {
  Deno.test({
    name,
    ignore: ignore || Deno.build.os !== "linux" || Deno.uid() !== 0,
    async fn() {
      await using dir = await temporaryDir();
      const disk = join(dir.path, "disk");
      await Deno.mkdir(disk);
      const args = ["-t", "tmpfs", "-o", `size=${mib}m`, "tmpfs", disk];
      const { code } = await run("mount", { args });
      // A container may not.
      if (code !== 0) return console.error("skipped: no tmpfs can be mounted");
      try {
        await body(disk, dir.path);
      } finally {
        await run("umount", { args: [disk] });
      }
    },
  });
}

const source = { kind: "file", path: "/images/a.qcow2" } as const;

test("a body without an end is written as long as there is room for more", {
  mib: 10,
}, async (disk) => {
  const endless = async function* () {
    while (true) yield new Uint8Array(65_536);
  };
  const file = { name: "a", total: null, write: writeAll };
  const { context } = fetching({ source, sha256: SHA256 }, disk);
  const { message } = await failure(
    "disk_full",
    () => spool(context, endless(), file),
  );
  assertEquals(
    message,
    `Not enough space at ${disk}: ${MIB} bytes are needed, ${RESERVE} are free`,
  );
  assertEquals((await Deno.stat(join(disk, "a"))).size, 2 * MIB);
});

test("a body of a known size is not held up on its way", {
  mib: 10,
}, async (disk) => {
  const bytes = new Uint8Array(5 * MIB);
  const once = async function* () {
    yield bytes;
  };
  const { context } = fetching({ source, sha256: SHA256 }, disk);
  const file = { name: "a", total: bytes.length, write: writeAll };
  assertEquals((await spool(context, once(), file)).bytes, 5 * MIB);
});

test("a file of this host that has no room is not copied", {
  mib: 10,
}, async (disk, beside) => {
  const path = join(beside, "a.qcow2");
  const copy = () =>
    fetchImage(
      { name: "demo", source: { kind: "file", path }, sha256: SHA256 },
      disk,
      { emit: () => {} },
    );
  // Holes take none.
  await Deno.writeFile(path, new Uint8Array(MIB).fill(7));
  await Deno.truncate(path, 64 * MIB);
  assertEquals((await copy()).bytes, 64 * MIB);
  await Deno.remove(join(disk, "a.qcow2"));
  await Deno.writeFile(path, new Uint8Array(3 * MIB).fill(7));
  await failure("disk_full", copy);
  assertEquals([...Deno.readDirSync(disk)], []);
});

test("a download needs room for what is not there yet", {
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
  const { context } = fetching(image, disk, { registry: { caFile } });
  const download = async (kept: number) => {
    const digest = `sha256:${SHA256}`;
    {
      await using part = await openPart(disk, { size, digest });
      using writer = await part.openWriter();
      writer.write(0, new Uint8Array(kept).fill(7));
    }
    const { bytes } = await downloadImage(context, url);
    return bytes;
  };
  // The records beside it take two pages.
  size -= 16_384;
  assertEquals(await download(2 * MIB), size);
  await Deno.remove(join(disk, "image.part"));
  size += 32_768;
  await failure("disk_full", () => download(2 * MIB));
});

test("a pull needs room for what is not there yet", {
  mib: 12,
  ignore: noOras,
}, async (disk, beside) => {
  await using registry = startHostileRegistry();
  const env = new Map(Object.entries(Deno.env.toObject()));
  env.set("TOOLSMITH_ORAS", parts.oras!).set("DOCKER_CONFIG", beside);
  const pull = async (size: number) => {
    const image = new Uint8Array(size).fill(size % 251);
    const annotations = { "org.opencontainers.image.title": "a.qcow2" };
    const layer = await registry.blob(image, { annotations });
    const config = await registry.blob(new TextEncoder().encode("{}"));
    await registry.manifest("1", { schemaVersion: 2, config, layers: [layer] });
    const digest = String(layer.digest);
    {
      await using part = await openPart(disk, { size, digest });
      using writer = await part.openWriter();
      writer.write(0, image.subarray(0, 2 * MIB));
    }
    const source = parseReference(`${registry.host}/owner/image:1`);
    const { context } = fetching({ source, sha256: digest.slice(7) }, disk, {
      registry: { env },
    });
    return (await pullFromRegistry(context, source)).bytes;
  };
  const limit = 4 * MIB;
  assertEquals(await pull(limit - 16_384), limit - 16_384);
  await Deno.remove(join(disk, "image.part"));
  await failure("disk_full", () => pull(limit + 16_384));
});
