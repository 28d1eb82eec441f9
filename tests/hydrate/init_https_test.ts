import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { findDigestsInList } from "../../lib/hydrate/_checksum_list.ts";
import { hydrate } from "../../lib/hydrate/hydrate.ts";
import { init, type InitOptions } from "../../lib/hydrate/init.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { certificateOfFile } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { requires } from "../support/parts.ts";
import { startTlsServer } from "../support/tls_server.ts";
import { makeQcow2 } from "../support/workspace.ts";

const { ignore } = requires("openssl", "qemuImg");
const certificate = certificateOfFile(ignore);
const IMAGE = "jammy-amd64.img";
const CACHED = "jammy-amd64.qcow2";

interface Bench {
  /** The workspace, where init writes the manifest. */
  cwd: string;
  /** The image's URL; other files are served beside it. */
  ref: string;
  /** The digest that the image has. */
  digest: string;
  /** Paths that were requested from the server. */
  asked: () => string[];
  /** Writes the manifest. */
  write: (options?: InitOptions) => ReturnType<typeof init>;
  /** File names in the image's cache entry. */
  cached: () => string[];
}

/** Serves an image, and files that the test derives from its digest. */
function test(
  name: string,
  files: (digest: string) => Record<string, string>,
  body: (bench: Bench) => Promise<void>,
) {
  Deno.test({
    name,
    ignore,
    async fn() {
      await using dir = await temporaryDir();
      const image = join(dir.path, "image");
      await makeQcow2(image);
      const digest = await sha256OfChunks(readFileChunks(image));
      const texts = new Map(Object.entries(files(digest)));
      const encoder = new TextEncoder();
      await using server = await startTlsServer(certificate(), async (it) => {
        const text = texts.get(it.path.slice(1));
        if (text === undefined && it.path !== `/${IMAGE}`) {
          return await it.head(404, { "content-length": 0 });
        }
        const bytes = text === undefined
          ? await Deno.readFile(image)
          : encoder.encode(text);
        await it.head(200, { "content-length": bytes.length });
        await it.body(bytes);
      });
      const cwd = join(dir.path, "work");
      await Deno.mkdir(cwd);
      const ref = `${server.url}/${IMAGE}`;
      const cache = join(cwd, ".toolsmith", "cache", "jammy-amd64");
      await body({
        cwd,
        ref,
        digest,
        asked: () => server.requests.map(({ path }) => path),
        write: (options) =>
          init({
            ref,
            cwd,
            caFile: certificate().caFile,
            retries: 0,
            ...options,
          }),
        cached: () => list(join(cache, digest)),
      });
    },
  });
}

function list(dir: string): string[] {
  try {
    return [...Deno.readDirSync(dir)].map(({ name }) => name).sort();
  } catch {
    return [];
  }
}

const NOTHING = () => ({});

test(
  "init downloads an image, pins its digest, and hydrate finds it in the cache",
  NOTHING,
  async (bench) => {
    const { write, digest, ref, cwd, cached, asked } = bench;
    const { manifest, outcome } = await write();
    assertEquals(outcome, "created");
    const { image } = JSON.parse(await Deno.readTextFile(manifest.path));
    assertEquals(image.name, "jammy-amd64");
    assertEquals(image.qcow2, ref);
    assertEquals(image.qcow2_sha256, digest);
    assertEquals(cached(), [CACHED, "verified.json"]);
    assertEquals((await hydrate(manifest)).outcome, "cached");
    assertEquals(asked(), [`/${IMAGE}`]);
    // Only the image and lock files are left.
    const left = list(join(cwd, ".toolsmith/cache/jammy-amd64"));
    assert(!left.some((name) => name.startsWith(".staging")), left.join());
  },
);

test(
  "init downloads nothing when the image with the given digest is cached",
  NOTHING,
  async (bench) => {
    const { write, digest, asked } = bench;
    await write({ sha256: digest.toUpperCase() });
    await write({ sha256: digest, update: true });
    assertEquals(asked(), [`/${IMAGE}`]);
  },
);

test(
  "init rejects a download with another digest, and keeps nothing",
  NOTHING,
  async (bench) => {
    const { write, cwd, digest } = bench;
    const error = await expectFailure(
      "checksum_mismatch",
      () => write({ sha256: "0".repeat(64) }),
    );
    assertStringIncludes(error.message, digest);
    const kept = list(join(cwd, ".toolsmith"));
    assert(!kept.includes("tools.json"));
    assertEquals(list(join(cwd, ".toolsmith/cache/jammy-amd64", digest)), []);
  },
);

test(
  "init --sha256sums reads the expected digest from SHA256SUMS",
  (digest) => ({
    SHA256SUMS: `${"1".repeat(64)} *other.img\n${digest} *${IMAGE}\n`,
    empty: `${"1".repeat(64)} *other.img\n`,
    torn: `${digest} *${IMAGE}\n${"1".repeat(64)} *${IMAGE}\n`,
    wrong: `${"1".repeat(64)} *${IMAGE}\n`,
    long: `${digest} *${IMAGE}\n${"#".repeat(1024 * 1024)}`,
  }),
  async (bench) => {
    const { write, ref, digest, asked } = bench;
    const sums = (name: string) => new URL(name, ref).href;
    for (const name of ["empty", "torn"]) {
      await expectFailure(
        "checksum_mismatch",
        () => write({ sha256sums: sums(name) }),
      );
    }
    await expectFailure(
      "artifact_unsafe",
      () => write({ sha256sums: sums("long") }),
    );
    // A list without exactly one digest causes no download.
    assert(!asked().includes(`/${IMAGE}`));
    await expectFailure("not_found", () => write({ sha256sums: sums("gone") }));
    await expectFailure(
      "checksum_mismatch",
      () => write({ sha256sums: sums("wrong") }),
    );
    const { manifest } = await write({ sha256sums: sums("SHA256SUMS") });
    assertEquals(manifest.image.sha256, digest);
  },
);

test("init rejects a download that is not QCOW2", () => ({
  "raw.img": "not a QCOW2",
}), async (bench) => {
  const { write, ref } = bench;
  const raw = new URL("raw.img", ref).href;
  await expectFailure("image_invalid", () => write({ ref: raw }));
});

test(
  "init --update keeps the image name in the manifest and the cache",
  NOTHING,
  async (bench) => {
    const { write, cwd, digest } = bench;
    await Deno.mkdir(join(cwd, ".toolsmith"));
    await Deno.writeTextFile(
      join(cwd, ".toolsmith/tools.json"),
      JSON.stringify({
        image: { name: "kept", qcow2: "x.qcow2", qcow2_sha256: "0".repeat(64) },
      }),
    );
    const { manifest } = await write({ update: true });
    assertEquals(manifest.image.name, "kept");
    const dir = join(cwd, ".toolsmith/cache/kept", digest);
    assertEquals(list(dir), [CACHED, "verified.json"]);
  },
);

test(
  "init --update rejects an invalid manifest before the download, and replaces TODO in the image's fields",
  NOTHING,
  async (bench) => {
    const { write, cwd, digest, asked } = bench;
    const path = join(cwd, ".toolsmith/tools.json");
    const image = { name: "kept", qcow2: "TODO", qcow2_sha256: "TODO" };
    await Deno.mkdir(join(cwd, ".toolsmith"));
    for (const text of ["{", JSON.stringify({ image, tools: 5 })]) {
      await Deno.writeTextFile(path, text);
      await expectFailure("manifest_invalid", () => write({ update: true }));
    }
    assertEquals(asked(), []);
    await Deno.writeTextFile(path, JSON.stringify({ image }));
    const { manifest } = await write({ update: true });
    assertEquals(manifest.image.name, "kept");
    const dir = join(cwd, ".toolsmith/cache/kept", digest);
    assertEquals(list(dir), [CACHED, "verified.json"]);
  },
);

Deno.test("init rejects a malformed sha256, a wrong use of sha256sums, and an http:// image", async () => {
  const ref = "https://images.example/a.qcow2";
  for (
    const options of [
      { ref, sha256: "abc" },
      { ref, sha256: "0".repeat(64), sha256sums: ref },
      { ref, sha256sums: "./SHA256SUMS" },
      { ref: "ghcr.io/o/r:1", sha256sums: ref },
      { file: "a.qcow2", sha256sums: ref },
    ]
  ) await expectFailure("usage", () => init({ cwd: "/nowhere", ...options }));
  await expectFailure(
    "reference_invalid",
    () => init({ cwd: "/nowhere", ref: "http://images.example/a.qcow2" }),
  );
});

Deno.test("findDigestsInList() reads GNU, BSD and CRLF checksum lines", () => {
  const a = "a".repeat(64);
  const b = "b".repeat(64);
  const list = `# of today
${a}  one.img
${b} *./two.img
SHA256 (three.qcow2) = ${a.toUpperCase()}
SHA512 (four.qcow2) = ${a}${b}
${a}${b}  four.qcow2\r
${a}  five.img\r
`;
  const names = ["one.img", "two.img", "three.qcow2", "four.qcow2", "five.img"];
  assertEquals(names.map((name) => findDigestsInList(name, list)), [
    [a],
    [b],
    [a],
    [],
    [a],
  ]);
});
