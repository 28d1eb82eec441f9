import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import fc from "fast-check";
import { TITLE_ANNOTATION } from "../../lib/oci/artifact.ts";
import { parseArtifactManifest } from "../../lib/oci/_artifact_manifest.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import { sha256ToDigest } from "../../lib/system/digest.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { assertLinear } from "../support/assert_linear.ts";

const MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json";
const ASKED = parseReference("ghcr.io/owner/repo:1");
const DIGEST = sha256ToDigest("d".repeat(64));
const LAYER = {
  mediaType: "application/x",
  digest: `sha256:${"a".repeat(64)}`,
  size: 7,
  annotations: { [TITLE_ANNOTATION]: "image.qcow2" },
};
const CONFIG = { mediaType: "application/y", digest: DIGEST, size: 2 };
const MANIFEST = {
  schemaVersion: 2,
  mediaType: MEDIA_TYPE,
  config: CONFIG,
  layers: [LAYER],
};

function read(manifest: unknown) {
  const text = typeof manifest === "string"
    ? manifest
    : JSON.stringify(manifest);
  return parseArtifactManifest(new TextEncoder().encode(text), ASKED, DIGEST);
}

async function refused(manifest: unknown, why: string) {
  const error = await expectFailure("artifact_unsafe", () => read(manifest));
  assertStringIncludes(error.message, why);
  assertStringIncludes(error.message, "ghcr.io/owner/repo:1");
  assert(error.message.length < 500, error.message);
}

Deno.test("parseArtifactManifest() parses a manifest and sets its reference to the digest", () => {
  assertEquals(read(MANIFEST), {
    reference: parseReference(`ghcr.io/owner/repo@${DIGEST}`),
    digest: DIGEST,
    layers: [LAYER],
    config: CONFIG,
    subject: undefined,
  });
});

Deno.test("parseArtifactManifest() ignores unknown fields and annotations", () => {
  const docker = "application/vnd.docker.distribution.manifest.v2+json";
  for (const mediaType of [undefined, docker]) {
    const { layers } = read({ ...MANIFEST, mediaType, "com.example.x": [{}] });
    assertEquals(layers, [LAYER]);
  }
  const annotations = { Size: "1", "ÄÖ": "x", ["org.Example"]: "" };
  const layers = [{ ...LAYER, annotations, urls: ["https://x"] }];
  assertEquals(read({ ...MANIFEST, layers, annotations }).layers, layers);
  const bare = { ...LAYER, annotations: null };
  assertEquals(read({ ...MANIFEST, layers: [bare] }).layers, [bare]);
});

const text = JSON.stringify(MANIFEST);
const evil = JSON.stringify([{ ...LAYER, digest: DIGEST }]);

/** Manifests that oras would interpret differently. */
const AMBIGUOUS: Record<string, [unknown, string]> = {
  "a duplicate layers key": [
    text.replace("{", `{"layers":${evil},`),
    '"layers" is a duplicate key',
  ],
  "a duplicate layers key, once escaped": [
    text.replace("{", `{"l\\u0061yers":${evil},`),
    '"layers" is a duplicate key',
  ],
  "the key Layers": [
    { ...MANIFEST, Layers: [] },
    'can be mistaken for "layers"',
  ],
  "the key layerſ, which Go matches with layers": [
    { ...MANIFEST, "layerſ": [] },
    'can be mistaken for "layers"',
  ],
  "the key MediaType": [{ ...MANIFEST, MediaType: "x" }, '"mediaType"'],
  "the key CONFIG": [{ ...MANIFEST, CONFIG: {} }, '"config"'],
  "the key Digest in a descriptor": [
    { ...MANIFEST, layers: [{ ...LAYER, Digest: DIGEST }] },
    '"digest"',
  ],
  "the key Digest in a second descriptor, after annotations": [
    { ...MANIFEST, layers: [{ annotations: null }, { Digest: DIGEST }] },
    '"digest"',
  ],
  "the key Annotations in a descriptor": [
    { ...MANIFEST, layers: [{ ...LAYER, Annotations: {} }] },
    '"annotations"',
  ],
  "a duplicate title annotation": [
    text.replace('{"org.', `{"${TITLE_ANNOTATION}":"x","org.`),
    "is a duplicate key",
  ],
  "a title annotation in upper case": [
    {
      ...MANIFEST,
      layers: [{ annotations: { [TITLE_ANNOTATION.toUpperCase()]: "x" } }],
    },
    `"${TITLE_ANNOTATION}"`,
  ],
  "an index's media type, with layers": [
    {
      ...MANIFEST,
      mediaType: "application/vnd.oci.image.index.v1+json",
      manifests: [LAYER],
    },
    "not the media type of an image manifest",
  ],
  "manifests beside layers": [
    { ...MANIFEST, manifests: [LAYER] },
    'must not have "manifests"',
  ],
  "blobs beside layers": [
    { ...MANIFEST, blobs: [LAYER] },
    'must not have "blobs"',
  ],
  "empty blobs beside layers": [
    { ...MANIFEST, blobs: null },
    'must not have "blobs"',
  ],
  "an artifact manifest's media type": [
    {
      mediaType: "application/vnd.oci.artifact.manifest.v1+json",
      layers: [LAYER],
    },
    "not the media type of an image manifest",
  ],
  "a media type in another case": [
    { ...MANIFEST, mediaType: MEDIA_TYPE.toUpperCase() },
    "not the media type of an image manifest",
  ],
  "a media type that is not a string": [
    { ...MANIFEST, mediaType: null },
    "not the media type of an image manifest",
  ],
};

for (const [name, [manifest, why]] of Object.entries(AMBIGUOUS)) {
  Deno.test(`parseArtifactManifest() rejects ${name}`, () =>
    refused(manifest, why));
}

const NOT_ONE: Record<string, [unknown, string]> = {
  "an empty file": ["", "not JSON ("],
  "HTML instead of JSON": ["<html>", "not JSON ("],
  "a byte order mark": [`\ufeff${text}`, "not JSON ("],
  "trailing text after the JSON": [`${text}{}`, "not JSON ("],
  "null": ["null", "not a JSON object"],
  "a list instead of an object": [[MANIFEST], "not a JSON object"],
  "no layers": [{ ...MANIFEST, layers: undefined }, '"layers" is not a list'],
  "layers that are an object": [
    { ...MANIFEST, layers: {} },
    '"layers" is not a list',
  ],
  "a config that is null": [{ ...MANIFEST, config: null }, "config is malfor"],
  "a subject that is a list": [{ ...MANIFEST, subject: [] }, "subject is malf"],
  "too many layers": [
    { ...MANIFEST, layers: Array(1001).fill(CONFIG) },
    "has 1001 layers",
  ],
  "too many levels": [
    text.replace("{", `{"x":${"[".repeat(400_000)}${"]".repeat(400_000)},`),
    "nested more than 32 levels deep",
  ],
};

for (const [name, [manifest, why]] of Object.entries(NOT_ONE)) {
  Deno.test(`parseArtifactManifest() rejects ${name}`, () =>
    refused(manifest, why));
}

Deno.test("parseArtifactManifest() rejects bytes that are not UTF-8", async () => {
  const named = text.replace("image.qcow2", "im?ge.qcow2");
  const bytes = new TextEncoder().encode(named);
  bytes[bytes.indexOf("?".charCodeAt(0))] = 0xff;
  const { message } = await expectFailure(
    "artifact_unsafe",
    () => parseArtifactManifest(bytes, ASKED, DIGEST),
  );
  assertStringIncludes(message, "not JSON (");
});

Deno.test("parseArtifactManifest() accepts the maximum layers, bytes and nesting, and rejects one more", async () => {
  const many = { ...MANIFEST, layers: Array(1000).fill(CONFIG) };
  assertEquals(read(many).layers.length, 1000);
  const large = text.padEnd(1024 * 1024);
  assertEquals(read(large).layers, [LAYER]);
  await refused(
    `${large} `,
    "the manifest has 1048577 bytes, more than 1048576",
  );
  // The manifest object is the first of 32 levels.
  const deep = (levels: number) =>
    text.replace("{", `{"x":${"[".repeat(levels)}${"]".repeat(levels)},`);
  assertEquals(read(deep(31)).layers, [LAYER]);
  await refused(deep(32), "nested more than 32 levels deep");
  const empty = { ...LAYER, size: 0 };
  assertEquals(read({ ...MANIFEST, layers: [empty] }).layers, [empty]);
});

Deno.test("parseArtifactManifest() quotes at most 100 characters of a malformed layer", async () => {
  const layers = ["x".repeat(200)];
  await refused({ ...MANIFEST, layers }, `malformed: "${"x".repeat(99)}…`);
});

Deno.test("parseArtifactManifest() lists at most a thousand platform manifests of an index", () => {
  const mediaType = "application/vnd.oci.image.index.v1+json";
  const of = (architecture: unknown, digest: string = DIGEST) => ({
    ...CONFIG,
    digest,
    platform: { architecture, os: "linux" },
  });
  const found = (manifests: unknown) => {
    const index = read({ mediaType, manifests });
    assertEquals(index.layers, []);
    return index.manifests;
  };
  const other = { ...CONFIG, platform: undefined };
  const known = { digest: DIGEST, os: "linux", variant: undefined };
  assertEquals(
    found([of("amd64"), other, of(7), of("x", "sha512:a"), of("arm64")]),
    [
      { ...known, architecture: "amd64" },
      { ...known, architecture: "arm64" },
    ],
  );
  const platform = {
    architecture: "arm",
    os: "a\nb".repeat(30),
    variant: "v7",
  };
  const [{ os, variant }] = found([{ ...CONFIG, platform }])!;
  assertEquals([os, variant], [`${"a b".repeat(14).slice(0, 40)}…`, "v7"]);
  const odd = { architecture: "arm", os: 7, variant: "" };
  assertEquals(found([{ ...CONFIG, platform: odd }]), [
    { ...known, architecture: "arm", os: undefined },
  ]);
  assertEquals(found(Array(1001).fill(of("amd64")))!.length, 1000);
  const [{ architecture }] = found([of("y".repeat(50))])!;
  assertEquals(architecture, `${"y".repeat(40)}…`);
  assertEquals(found(undefined), []);
});

Deno.test("parseArtifactManifest() rejects a layer that is not a descriptor", async () => {
  const nonsense: unknown[] = [
    null,
    "layer",
    [],
    {},
    { ...LAYER, digest: 7 },
    { ...LAYER, digest: "sha256" },
    { ...LAYER, digest: "../x" },
    { ...LAYER, size: "7" },
    { ...LAYER, size: -1 },
    { ...LAYER, size: 1.5 },
    { ...LAYER, size: 2 ** 53 },
    { ...LAYER, mediaType: undefined },
    { ...LAYER, annotations: "x" },
    { ...LAYER, annotations: [] },
    { ...LAYER, annotations: { [TITLE_ANNOTATION]: 7 } },
  ];
  for (const layer of nonsense) {
    await refused({ ...MANIFEST, layers: [LAYER, layer] }, "is malformed");
  }
});

Deno.test("parseArtifactManifest() returns an artifact or throws artifact_unsafe, for any input", () => {
  const attempt = (bytes: Uint8Array) => {
    try {
      parseArtifactManifest(bytes, ASKED, DIGEST);
    } catch (error) {
      if (!(error instanceof ToolsmithError)) throw error;
      assertEquals(error.code, "artifact_unsafe");
    }
  };
  fc.assert(fc.property(fc.uint8Array(), attempt));
  const value = fc.jsonValue();
  const field = fc.constantFrom(
    ...["mediaType", "layers", "config", "subject", "manifests"],
    ...["Layers", "annotations", "x"],
  );
  const manifests = fc.dictionary(field, value).map((fields) =>
    new TextEncoder().encode(JSON.stringify({ ...MANIFEST, ...fields }))
  );
  fc.assert(fc.property(manifests, attempt));
});

Deno.test("parseArtifactManifest() returns every valid descriptor unchanged", () => {
  const descriptor = fc.record({
    mediaType: fc.string(),
    digest: fc.constantFrom(DIGEST, LAYER.digest, "sha512+b64u:AAA_-="),
    size: fc.maxSafeNat(),
    annotations: fc.dictionary(
      fc.string().filter((key) => key !== "__proto__"),
      fc.string(),
      { noNullPrototype: true },
    ),
  });
  fc.assert(fc.property(fc.array(descriptor), (layers) => {
    assertEquals(read({ ...MANIFEST, layers }).layers, layers);
  }));
});

Deno.test("parseArtifactManifest() takes linear time in the length of a manifest", async () => {
  const words = [
    ["image.qcow2", "a/", ""],
    ["image.qcow2", "\\u0041", ""],
    ["image.qcow2", '\\"', ""],
    ["{", '"":[],', "{"],
    ["{", "{},", '{"x":[', "0],"],
  ];
  for (const [where, word, before, after = ""] of words) {
    const manifest = (length: number) => {
      const many = word.repeat(length / word.length);
      return text.replace(where, () => `${before}${many}${after}`);
    };
    const reading = async (manifest: string) => {
      await Promise.resolve().then(() => read(manifest)).catch(() => {});
    };
    await assertLinear(word, manifest, reading, 1024 * 1024 - text.length - 10);
  }
});
