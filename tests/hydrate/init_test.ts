import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { type ErrorCode, ToolsmithError } from "../../lib/errors.ts";
import { hydrate } from "../../lib/hydrate/hydrate.ts";
import { init } from "../../lib/hydrate/init.ts";
import { loadManifest } from "../../lib/manifest/manifest.ts";
import { publish } from "../../lib/publish/publish.ts";
import { temporaryDir } from "../support/directory.ts";
import { fakeOras, shell } from "../support/fake_oras.ts";
import { foundTools } from "../support/parts.ts";
import {
  type ImageBench,
  makeQcow2,
  orasPush,
  testWithImage,
  TYPE,
} from "../support/workspace.ts";

if (foundTools.oras) Deno.env.set("TOOLSMITH_ORAS", foundTools.oras);

/** Runs a test with an image and an empty working directory beside it. */
function test(
  name: string,
  body: (bench: ImageBench & { cwd: string }) => Promise<void>,
) {
  testWithImage(name, async (bench) => {
    const cwd = join(bench.dir, "work");
    await Deno.mkdir(cwd);
    await body({ ...bench, cwd });
  });
}

async function rejects(code: ErrorCode, promise: Promise<unknown>) {
  const error = await assertRejects(() => promise, ToolsmithError);
  assertEquals(error.code, code, error.message);
  return error;
}

test("init writes a manifest for a registry reference that hydrate accepts", async (bench) => {
  const { cwd, image, sha256, host } = bench;
  await publish(image, `${host}/owner/fountain-vm:1`);
  const ref = `oci://${host}/owner/fountain-vm:1`;
  const { path, outcome, manifest } = await init({ ref, cwd });
  assertEquals(path, join(cwd, ".toolsmith", "tools.json"));
  assertEquals(outcome, "created");
  assertEquals(JSON.parse(await Deno.readTextFile(path)), {
    image: {
      name: "fountain-vm",
      tarball: "",
      sha256: "",
      qcow2: ref,
      qcow2_sha256: sha256,
    },
    tools: {},
    operations: [],
  });
  assertEquals((await hydrate(manifest)).outcome, "pulled");
});

test("init writes a manifest for a local image that hydrate accepts", async (bench) => {
  const { cwd, image, sha256 } = bench;
  const progress: string[] = [];
  const { path } = await init({
    file: "../dist/image.qcow2",
    name: "mine",
    cwd,
    onEvent: ({ type }) => progress.push(type),
  });
  const { image: written } = JSON.parse(await Deno.readTextFile(path));
  assertEquals(written.qcow2, "../../dist/image.qcow2");
  assertEquals(written.name, "mine");
  assertEquals(progress.at(-1), "checksum_progress");
  const manifest = await loadManifest(path);
  assertEquals(manifest.image.source, { kind: "file", path: image });
  const { outcome, digest } = await hydrate(manifest);
  assertEquals([outcome, digest], ["copied", `sha256:${sha256}`]);
});

test("init writes a local image named oci:x.qcow2 as a file path", async (bench) => {
  const path = join(bench.cwd, "oci:x.qcow2");
  await Deno.copyFile(bench.image, path);
  const { manifest } = await init({
    file: path,
    cwd: bench.cwd,
    manifest: "tools.json",
  });
  assertEquals(manifest.image.source, { kind: "file", path });
});

test("init keeps an existing manifest, and init --update changes only its image", async (bench) => {
  const { cwd, image, sha256, host } = bench;
  const path = join(cwd, "tools.json");
  const text = `{ "operations": ["cc"], "tools": {"cc": "/bin/cc"},
    "image": {"name": "kept", "qcow2": "old.qcow2", "qcow2_sha256": "${
    "0".repeat(64)
  }"} }`;
  await Deno.writeTextFile(path, text);
  await publish(image, `${host}/owner/vm:1`);
  const env = new Map(Object.entries(Deno.env.toObject()))
    .set("TOOLSMITH_MANIFEST", "tools.json");
  const options = { ref: `${host}/owner/vm:1`, cwd, env };
  const error = await rejects("usage", init(options));
  assertStringIncludes(error.message, path);
  assertStringIncludes(error.hint!, "--update");
  assertEquals(await Deno.readTextFile(path), text);

  const updated = await init({ ...options, update: true });
  assertEquals(updated.outcome, "updated");
  assertEquals(
    await Deno.readTextFile(path),
    text.replace("0".repeat(64), sha256)
      .replace("old.qcow2", `oci://${host}/owner/vm:1`),
  );
  assertEquals((await init({ ...options, update: true })).outcome, "unchanged");
  await init({ ...options, update: true, name: "renamed" });
  assertEquals((await loadManifest(path)).image.name, "renamed");
});

test("init rejects an artifact without exactly one image, and a missing or non-QCOW2 file", async (bench) => {
  const { cwd, image, host } = bench;
  const dir = join(image, "..");
  await Deno.writeTextFile(join(dir, "notes.txt"), "none");
  await makeQcow2(join(dir, "second.qcow2"));
  const push = (name: string, layers: string[]) =>
    orasPush(`${host}/owner/${name}:1`, layers, { cwd: dir });
  await push("none", ["notes.txt:text/plain"]);
  await push("two", [`image.qcow2:${TYPE}`, `second.qcow2:${TYPE}`]);
  const from = (name: string) => init({ ref: `${host}/owner/${name}:1`, cwd });
  await rejects("payload_missing", from("none"));
  await rejects("payload_ambiguous", from("two"));
  await rejects("not_found", from("three"));
  const wrong = join(dir, "notes.txt");
  await rejects("image_invalid", init({ file: wrong, cwd }));
  await rejects("source_not_found", init({ file: "gone.qcow2", cwd }));
  assertEquals([...Deno.readDirSync(cwd)], []);
});

test("init rejects an image whose digest differs from the given one", async (bench) => {
  const { cwd, image, sha256, host } = bench;
  await publish(image, `${host}/owner/vm:2`);
  const ref = `${host}/owner/vm:2`;
  const other = "0".repeat(64);
  await rejects("checksum_mismatch", init({ ref, sha256: other, cwd }));
  await rejects("checksum_mismatch", init({ file: image, sha256: other, cwd }));
  assertEquals([...Deno.readDirSync(cwd)], []);
  await init({ ref, sha256, cwd });
  await init({ file: image, sha256, cwd, update: true });
});

Deno.test("init rejects calls with neither ref nor file, or with both", async () => {
  await rejects("usage", init({}));
  await rejects("usage", init({ ref: "ghcr.io/o/r:1", file: "a.qcow2" }));
});

Deno.test({
  name: "init retries a registry that refuses the connection",
  ...shell,
  async fn() {
    const sha256 = "a".repeat(64);
    const annotations = { "org.opencontainers.image.title": "a.qcow2" };
    const layer = { mediaType: TYPE, digest: `sha256:${sha256}`, size: 5 };
    const artifact = { schemaVersion: 2, layers: [{ ...layer, annotations }] };
    await using dir = await temporaryDir();
    await using fake = await fakeOras(`
      [ -e "$0.asked" ] && { printf %s '${JSON.stringify(artifact)}'; exit; }
      touch "$0.asked"; echo 'Error: connection refused' >&2; exit 1
    `);
    const types: string[] = [];
    const { manifest } = await init({
      ref: "localhost:5000/owner/vm:1",
      ...{ cwd: dir.path, env: fake.env, retryDelayMs: 1 },
      onEvent: ({ type }) => types.push(type),
    });
    assertEquals([manifest.image.sha256, types], [sha256, ["retry"]]);
  },
});
