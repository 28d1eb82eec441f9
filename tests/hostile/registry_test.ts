import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { UNPACK } from "../../lib/oci/artifact.ts";
import { spawn } from "../../lib/system/process.ts";
import {
  type HostileRegistry,
  IMAGE_MANIFEST,
  startHostileRegistry,
} from "../support/hostile_registry.ts";
import { needs, parts } from "../support/parts.ts";
import { tarGzip } from "../support/tar.ts";
import {
  cleanEnvironment,
  cliCommand,
  jsonLines,
  makeQcow2,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

const TITLE = "org.opencontainers.image.title";
const INDEX = "application/vnd.oci.image.index.v1+json";
const ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json";
const DOCKER = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json";

type Layer = Record<string, unknown>;

/** A registry with an image, an archive that oras 1.3.0 would unpack over the
 * file `victim` of the current directory, and a workspace for the image. */
interface Scene {
  registry: HostileRegistry;
  work: Workspace;
  /** The image's layer. */
  good: Layer;
  /** The archive's layer. */
  evil: Layer;
  config: Layer;
  bytes: Uint8Array<ArrayBuffer>;
  hydrate(env?: Record<string, string>): Promise<Outcome>;
}

interface Outcome {
  code: number;
  last: Record<string, string>;
}

function test(name: string, body: (scene: Scene) => Promise<void>) {
  Deno.test({
    name,
    ...needs("oras", "qemuImg"),
    async fn() {
      await using registry = startHostileRegistry();
      await using work = await workspace();
      const { path, sha256 } = await makeQcow2(`${work.dir}/i.qcow2`, 65536);
      const bytes = await Deno.readFile(path);
      await Deno.remove(path);
      await Deno.writeTextFile(`${work.dir}/victim`, "precious");
      // oras checks where a hard link leads to, and makes another one.
      const tar = await tarGzip([
        { name: "d/x", hardLinkTo: "victim" },
        { name: "d/x", content: "overwritten" },
      ]);
      const annotations = { [TITLE]: "d", [UNPACK]: "true" };
      await work.manifest({
        qcow2: `oci://${registry.host}/owner/image:1`,
        qcow2_sha256: sha256,
      });
      await body({
        registry,
        work,
        bytes,
        good: await registry.blob(bytes, {
          annotations: { [TITLE]: "image.qcow2" },
        }),
        evil: await registry.blob(tar, { annotations }),
        config: await registry.blob(new TextEncoder().encode("{}")),
        async hydrate(env = {}) {
          const args = ["hydrate", "--json", "--retries", "0"];
          const options = { env, permissions: ["-A"], timeoutMs: 60_000 };
          const { code, stdout } = await work.toolsmith(args, options);
          return { code, last: jsonLines(stdout).last };
        },
      });
      const victim = await Deno.readTextFile(`${work.dir}/victim`);
      assertEquals(victim, "precious");
    },
  });
}

/** Each is read by oras as a manifest with the archive in it. */
const ATTACKS: Record<
  string,
  (scene: Scene) => { manifest: unknown; types?: string[] }
> = {
  "Layers beside layers": ({ good, evil, config }) => ({
    manifest: { config, layers: [good], Layers: [evil] },
  }),
  "layers twice": ({ good, evil, config }) => ({
    manifest: JSON.stringify({ config, layers: [evil] })
      .replace(/}$/, `,"layers":${JSON.stringify([good])}}`),
  }),
  "layerſ beside layers": ({ good, evil, config }) => ({
    manifest: { config, layers: [good], "layerſ": [evil] },
  }),
  "an index with layers": ({ good, evil, config }) => ({
    manifest: {
      mediaType: INDEX,
      config,
      layers: [good],
      manifests: [good, evil],
    },
    types: [INDEX],
  }),
  "an index by its Content-Type alone": ({ good, evil, config }) => ({
    manifest: { config, layers: [good], manifests: [good, evil] },
    types: [IMAGE_MANIFEST, INDEX],
  }),
  "an artifact manifest with layers": ({ good, evil, config }) => ({
    manifest: {
      mediaType: ARTIFACT,
      config,
      layers: [good],
      blobs: [good, evil],
    },
    types: [ARTIFACT],
  }),
  "an artifact manifest by its Content-Type alone": (
    { good, evil, config },
  ) => ({
    manifest: { config, layers: [good], Blobs: [good, evil] },
    types: [IMAGE_MANIFEST, ARTIFACT],
  }),
  "an archive as a layer": ({ good, evil, config }) => ({
    manifest: { config, layers: [good, evil] },
  }),
  "an archive as the configuration": ({ good, evil }) => ({
    manifest: { config: evil, layers: [good] },
  }),
  "an archive whose title is in another case": ({ good, evil, config }) => ({
    manifest: {
      config,
      layers: [good, { ...evil, Annotations: evil.annotations }],
    },
  }),
  "a subject that names a plain layer's bytes": ({ good, evil, config }) => ({
    manifest: {
      config,
      layers: [good, { ...evil, annotations: { [TITLE]: "d.tar" } }],
      subject: evil,
    },
  }),
};

for (const [name, attack] of Object.entries(ATTACKS)) {
  test(`hydrate() refuses a manifest before it downloads: ${name}`, async (scene) => {
    const { registry, hydrate } = scene;
    const { manifest, types } = attack(scene);
    await registry.manifest("1", manifest, types);
    const { code, last } = await hydrate();
    assertEquals([last.code, code], ["artifact_unsafe", 42], last.message);
    const blobs = registry.requests.filter((line) => line.includes("/blobs/"));
    assertEquals(blobs, []);
  });
}

/** What the registry calls the very bytes that were checked, when it is pulled. */
const SECOND_READINGS: Record<string, string> = {
  [DOCKER]: "pulled",
  [`${IMAGE_MANIFEST}; charset=utf-8`]: "pulled",
  [INDEX]: "checksum_mismatch",
  [ARTIFACT]: "checksum_mismatch",
  [DOCKER_LIST]: "checksum_mismatch",
  "text/plain": "not_found",
};

for (const [type, expected] of Object.entries(SECOND_READINGS)) {
  test(`hydrate() pulls what was checked or nothing, served as ${type}`, async (scene) => {
    const { registry, good, config, hydrate, work, bytes } = scene;
    const subject = { ...config, mediaType: IMAGE_MANIFEST };
    const manifest = { schemaVersion: 2, config, layers: [good], subject };
    await registry.manifest("1", manifest, [IMAGE_MANIFEST, type]);
    const { last } = await hydrate();
    assertEquals(last.code ?? last.outcome, expected, last.message);
    const found = (await work.cached()).filter((path) => /qcow2$/.test(path));
    assertEquals(found.length, expected === "pulled" ? 1 : 0);
    for (const path of found) assertEquals(await Deno.readFile(path), bytes);
  });
}

/** What an oras that does more than it should does after, or instead of, a pull. */
const PULLS: Record<string, [script: string, code: string, words: RegExp]> = {
  "writes more and does not end": [
    'head -c 50000000 /dev/zero > "$dir/more"; exec sleep 30',
    "artifact_unsafe",
    /bytes were written, and its manifest has/,
  ],
  "writes a little more": [
    '"$oras" "$@"; printf x > "$dir/more"',
    "artifact_unsafe",
    /bytes were written/,
  ],
  "replaces the image by one of the same size": [
    `"$oras" "$@"; sleep 1; cd "$dir"
     head -c "$(wc -c < image.qcow2)" /dev/zero > new; mv new image.qcow2`,
    "checksum_mismatch",
    /it was replaced while it was hashed/,
  ],
  "makes the image a link": [
    `"$oras" "$@"; cd "$dir"; mv image.qcow2 ../linked
     ln -s ../linked image.qcow2`,
    "checksum_mismatch",
    /it is no plain file/,
  ],
  "makes the image one file with another": [
    '"$oras" "$@"; ln -f "$dir/image.qcow2" "$dir/note.txt"',
    "checksum_mismatch",
    /it is the same file as note.txt/,
  ],
  "cuts the image": [
    '"$oras" "$@"; sleep 1; printf x > "$dir/image.qcow2"',
    "checksum_mismatch",
    /it has 1 bytes, not/,
  ],
  "writes nothing": ["exit 0", "checksum_mismatch", /it is not there/],
};

for (const [name, [script, code, words]] of Object.entries(PULLS)) {
  test(`hydrate() keeps nothing when oras ${name}`, async (scene) => {
    const { registry, good, config, hydrate, work } = scene;
    // Of the image's size, so that a link to it takes no more room.
    const note = await registry.blob(new Uint8Array(scene.bytes.length), {
      annotations: { [TITLE]: "note.txt" },
    });
    await registry.manifest("1", { config, layers: [good, note] });
    const oras = join(work.dir, "oras");
    await Deno.writeTextFile(
      oras,
      `#!/bin/sh
oras='${parts.oras}'
[ "$1" = pull ] || exec "$oras" "$@"
for word; do
  [ "$last" = --output ] && dir=$word
  last=$word
done
${script}
`,
      { mode: 0o755 },
    );
    const { last } = await hydrate({ TOOLSMITH_ORAS: oras });
    assertEquals(last.code, code, last.message);
    assertMatch(last.message, words);
    assertEquals(await work.cached(), []);
  });
}

test("hydrate() refuses the largest manifests soon, and heeds Ctrl-C", async (scene) => {
  const { registry, good, config, hydrate, work } = scene;
  const titled = (title: string) => ({
    ...good,
    annotations: { [TITLE]: title },
  });
  const manifests = [
    { config, layers: [good, titled("a/".repeat(500_000))] },
    { config, layers: Array(100_000).fill({}) },
    `{"layers":${"[".repeat(500_000)}${"]".repeat(500_000)}}`,
    { config, layers: [good], annotations: { a: "x".repeat(3_500_000) } },
  ];
  for (const manifest of manifests) {
    await registry.manifest("1", manifest);
    const begun = performance.now();
    const { last } = await hydrate();
    assertEquals(last.code, "artifact_unsafe", last.message);
    assert(performance.now() - begun < 10_000, "it took long");
    assert(last.message.length < 600, last.message);
  }
  // One that is all right keeps its reader for no longer.
  const layers = Array.from({ length: 999 }, (_, at) => ({
    ...titled(`${`${at}/`.repeat(15)}${"t".repeat(200)}`),
    size: 1,
  }));
  await registry.manifest("1", { config, layers: [good, ...layers] });
  registry.holdBlobs();
  const child = spawn(Deno.execPath(), {
    args: await cliCommand(["hydrate", "--retries", "0"], ["-A"]),
    cwd: work.dir,
    env: cleanEnvironment(),
  });
  while (!registry.requests.some((line) => line.includes("/blobs/"))) {
    await new Promise((done) => setTimeout(done, 20));
  }
  Deno.kill(child.pid, "SIGINT");
  assertEquals((await child.ended).code, 130);
});
