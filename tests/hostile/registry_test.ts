import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { UNPACK_ANNOTATION } from "../../lib/oci/artifact.ts";
import { spawnProcess } from "../../lib/system/process.ts";
import {
  type HostileRegistry,
  IMAGE_MANIFEST,
  startHostileRegistry,
} from "../support/hostile_registry.ts";
import {
  hydrateInProcess,
  type HydrateOutcome,
} from "../support/hydrate_here.ts";
import { foundTools, requires } from "../support/parts.ts";
import { makeTarGzip } from "../support/tar.ts";
import {
  cleanEnvironment,
  cliCommand,
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

/** A registry with an image and an archive that oras 1.3.0 would unpack over the
 * file `victim` in the working directory, and a workspace for the image. */
interface Scene {
  registry: HostileRegistry;
  work: Workspace;
  /** The image's layer. */
  good: Layer;
  /** The archive's layer. */
  evil: Layer;
  config: Layer;
  bytes: Uint8Array<ArrayBuffer>;
  hydrate(variables?: Record<string, string>): Promise<HydrateOutcome>;
}

function test(name: string, body: (scene: Scene) => Promise<void>) {
  Deno.test({
    name,
    ...requires("oras", "qemuImg"),
    async fn() {
      await using registry = startHostileRegistry();
      await using work = await workspace();
      const { path, sha256 } = await makeQcow2(`${work.dir}/i.qcow2`, 65536);
      const bytes = await Deno.readFile(path);
      await Deno.remove(path);
      await Deno.writeTextFile(`${work.dir}/victim`, "precious");
      // oras checks the target of a hard link, but then creates another one.
      const tar = await makeTarGzip([
        { name: "d/x", hardLinkTo: "victim" },
        { name: "d/x", content: "overwritten" },
      ]);
      const annotations = { [TITLE]: "d", [UNPACK_ANNOTATION]: "true" };
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
        hydrate: (variables) => hydrateInProcess(work, { variables }),
      });
      const victim = await Deno.readTextFile(`${work.dir}/victim`);
      assertEquals(victim, "precious");
    },
  });
}

/** Manifests that oras interprets as containing the archive. */
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
  test(`hydrate() rejects a malicious manifest before the download: ${name}`, async (scene) => {
    const { registry, hydrate } = scene;
    const { manifest, types } = attack(scene);
    await registry.manifest("1", manifest, types);
    const last = await hydrate();
    assertEquals([last.code, last.status], ["artifact_unsafe", 42]);
    const blobs = registry.requests.filter((line) => line.includes("/blobs/"));
    assertEquals(blobs, []);
  });
}

/** The media type that the registry sends to oras with the checked bytes. */
const SECOND_READINGS: Record<string, string> = {
  [DOCKER]: "pulled",
  [`${IMAGE_MANIFEST}; charset=utf-8`]: "pulled",
  [INDEX]: "checksum_mismatch",
  [ARTIFACT]: "checksum_mismatch",
  [DOCKER_LIST]: "checksum_mismatch",
  "text/plain": "not_found",
};

for (const [type, expected] of Object.entries(SECOND_READINGS)) {
  test(`hydrate() pulls only the checked manifest when oras receives it as ${type}`, async (scene) => {
    const { registry, good, config, hydrate, work, bytes } = scene;
    const subject = { ...config, mediaType: IMAGE_MANIFEST };
    const manifest = { schemaVersion: 2, config, layers: [good], subject };
    await registry.manifest("1", manifest, [IMAGE_MANIFEST, type]);
    const last = await hydrate();
    assertEquals(last.code ?? last.outcome, expected, last.message);
    const found = (await work.cached()).filter((path) => /qcow2$/.test(path));
    assertEquals(found.length, expected === "pulled" ? 1 : 0);
    for (const path of found) assertEquals(await Deno.readFile(path), bytes);
  });
}

/** Waits until the image is open, because it is being hashed. */
const OPENED =
  `until ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q "$dir/image.qcow2"
   do sleep 0.1; done`;

/** Scripts that misbehave after or instead of `oras pull`. */
const PULLS: Record<string, [script: string, code: string, words: RegExp]> = {
  "writes too many bytes and never exits": [
    'head -c 50000000 /dev/zero > "$dir/more"; exec sleep 30',
    "artifact_unsafe",
    /oras wrote \d+ bytes, the manifest declares/,
  ],
  "writes one byte too many": [
    '"$oras" "$@"; printf x > "$dir/more"',
    "artifact_unsafe",
    /oras wrote \d+ bytes/,
  ],
  "replaces the image with a file of the same size": [
    `"$oras" "$@"; ${OPENED}; cd "$dir"
     head -c "$(wc -c < image.qcow2)" /dev/zero > ../new; mv ../new image.qcow2`,
    "checksum_mismatch",
    /the file was replaced while it was hashed/,
  ],
  "replaces the image with a symbolic link": [
    `"$oras" "$@"; cd "$dir"; mv image.qcow2 ../linked
     ln -s ../linked image.qcow2`,
    "checksum_mismatch",
    /not a regular file/,
  ],
  "hard-links the image to another file": [
    '"$oras" "$@"; ln -f "$dir/image.qcow2" "$dir/note.txt"',
    "checksum_mismatch",
    /the file is the same as note.txt/,
  ],
  "truncates the image": [
    `"$oras" "$@"; ${OPENED}; printf x > "$dir/image.qcow2"`,
    "checksum_mismatch",
    /the file has 1 bytes, expected/,
  ],
  "writes nothing": ["exit 0", "checksum_mismatch", /the file is missing/],
};

for (const [name, [script, code, words]] of Object.entries(PULLS)) {
  test(`hydrate() keeps nothing when oras ${name}`, async (scene) => {
    const { registry, good, config, hydrate, work } = scene;
    // Of the image's size, so that a hard link does not change the total size.
    const note = await registry.blob(new Uint8Array(scene.bytes.length), {
      annotations: { [TITLE]: "note.txt" },
    });
    await registry.manifest("1", { config, layers: [good, note] });
    const oras = join(work.dir, "oras");
    await Deno.writeTextFile(
      oras,
      `#!/bin/sh
oras='${foundTools.oras}'
[ "$1" = pull ] || exec "$oras" "$@"
for word; do
  [ "$last" = --output ] && dir=$word
  last=$word
done
${script}
`,
      { mode: 0o755 },
    );
    const last = await hydrate({ TOOLSMITH_ORAS: oras });
    assertEquals(last.code, code, last.message);
    assertMatch(last.message, words);
    assertEquals(await work.cached(), []);
  });
}

test("hydrate() rejects oversized manifests with a short message, and ends on SIGINT", async (scene) => {
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
    const last = await hydrate();
    assertEquals(last.code, "artifact_unsafe", last.message);
    assert(last.message.length < 600, last.message);
  }
  // A large valid manifest does not delay SIGINT.
  const layers = Array.from({ length: 999 }, (_, at) => ({
    ...titled(`${`${at}/`.repeat(15)}${"t".repeat(200)}`),
    size: 1,
  }));
  await registry.manifest("1", { config, layers: [good, ...layers] });
  registry.holdBlobs();
  const child = spawnProcess(Deno.execPath(), {
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
