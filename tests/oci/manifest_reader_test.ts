import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import fc from "fast-check";
import { TITLE } from "../../lib/oci/artifact.ts";
import { readManifest } from "../../lib/oci/_manifest_reader.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import { asDigest } from "../../lib/system/digest.ts";
import { failure } from "../support/failure.ts";

const MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json";
const ASKED = parseReference("ghcr.io/owner/repo:1");
const DIGEST = asDigest("d".repeat(64));
const LAYER = {
  mediaType: "application/x",
  digest: `sha256:${"a".repeat(64)}`,
  size: 7,
  annotations: { [TITLE]: "image.qcow2" },
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
  return readManifest(new TextEncoder().encode(text), ASKED, DIGEST);
}

async function refused(manifest: unknown, why: string) {
  const error = await failure("artifact_unsafe", () => read(manifest));
  assertStringIncludes(error.message, why);
  assertStringIncludes(error.message, "ghcr.io/owner/repo:1");
  assert(error.message.length < 500, error.message);
}

Deno.test("a manifest is read, and named by its digest", () => {
  assertEquals(read(MANIFEST), {
    reference: parseReference(`ghcr.io/owner/repo@${DIGEST}`),
    digest: DIGEST,
    mediaType: MEDIA_TYPE,
    layers: [LAYER],
    config: CONFIG,
    subject: undefined,
  });
});

Deno.test("what a manifest may have besides is read over", () => {
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

/** What another reader would take for something else. */
const AMBIGUOUS: Record<string, [unknown, string]> = {
  "layers twice": [
    text.replace("{", `{"layers":${evil},`),
    '"layers" stands there twice',
  ],
  "layers twice, once escaped": [
    text.replace("{", `{"l\\u0061yers":${evil},`),
    '"layers" stands there twice',
  ],
  "Layers": [{ ...MANIFEST, Layers: [] }, 'may be taken for "layers"'],
  "layerſ, which Go takes for layers": [
    { ...MANIFEST, "layerſ": [] },
    'may be taken for "layers"',
  ],
  "MediaType": [{ ...MANIFEST, MediaType: "x" }, '"mediaType"'],
  "CONFIG": [{ ...MANIFEST, CONFIG: {} }, '"config"'],
  "a descriptor's Digest": [
    { ...MANIFEST, layers: [{ ...LAYER, Digest: DIGEST }] },
    '"digest"',
  ],
  "a second descriptor's Digest, after annotations": [
    { ...MANIFEST, layers: [{ annotations: null }, { Digest: DIGEST }] },
    '"digest"',
  ],
  "a descriptor's Annotations": [
    { ...MANIFEST, layers: [{ ...LAYER, Annotations: {} }] },
    '"annotations"',
  ],
  "a title twice": [
    text.replace('{"org.', `{"${TITLE}":"x","org.`),
    "stands there twice",
  ],
  "a title in upper case": [
    { ...MANIFEST, layers: [{ annotations: { [TITLE.toUpperCase()]: "x" } }] },
    `"${TITLE}"`,
  ],
  "an index's media type, with layers": [
    {
      ...MANIFEST,
      mediaType: "application/vnd.oci.image.index.v1+json",
      manifests: [LAYER],
    },
    "no media type of an image manifest",
  ],
  "manifests beside layers": [
    { ...MANIFEST, manifests: [LAYER] },
    "has no manifests",
  ],
  "blobs beside layers": [{ ...MANIFEST, blobs: [LAYER] }, "has no blobs"],
  "empty blobs beside layers": [{ ...MANIFEST, blobs: null }, "has no blobs"],
  "an artifact manifest's media type": [
    {
      mediaType: "application/vnd.oci.artifact.manifest.v1+json",
      layers: [LAYER],
    },
    "no media type of an image manifest",
  ],
  "a media type in another case": [
    { ...MANIFEST, mediaType: MEDIA_TYPE.toUpperCase() },
    "no media type of an image manifest",
  ],
  "a media type that is not a string": [
    { ...MANIFEST, mediaType: null },
    "no media type of an image manifest",
  ],
};

for (const [name, [manifest, why]] of Object.entries(AMBIGUOUS)) {
  Deno.test(`a manifest is refused for ${name}`, () => refused(manifest, why));
}

const NOT_ONE: Record<string, [unknown, string]> = {
  "nothing": ["", "it is not JSON"],
  "no JSON": ["<html>", "it is not JSON"],
  "a byte order mark": [`\ufeff${text}`, "it is not JSON"],
  "something after it": [`${text}{}`, "it is not JSON"],
  "null": ["null", "it is not an object"],
  "a list": [[MANIFEST], "it is not an object"],
  "no layers": [{ ...MANIFEST, layers: undefined }, "not a list"],
  "layers that are an object": [{ ...MANIFEST, layers: {} }, "not a list"],
  "a config that is null": [{ ...MANIFEST, config: null }, "config is malfor"],
  "a subject that is a list": [{ ...MANIFEST, subject: [] }, "subject is malf"],
  "too many layers": [
    { ...MANIFEST, layers: Array(1001).fill(CONFIG) },
    "has 1001 layers",
  ],
  "too many levels": [
    text.replace("{", `{"x":${"[".repeat(400_000)}${"]".repeat(400_000)},`),
    "nested too deeply",
  ],
};

for (const [name, [manifest, why]] of Object.entries(NOT_ONE)) {
  Deno.test(`a manifest is refused for ${name}`, () => refused(manifest, why));
}

Deno.test("a manifest is refused for bytes that are not UTF-8", async () => {
  const named = text.replace("image.qcow2", "im?ge.qcow2");
  const bytes = new TextEncoder().encode(named);
  bytes[bytes.indexOf("?".charCodeAt(0))] = 0xff;
  const { message } = await failure(
    "artifact_unsafe",
    () => readManifest(bytes, ASKED, DIGEST),
  );
  assertStringIncludes(message, "it is not JSON");
});

Deno.test("what a manifest may have at most is read, and one more is refused", async () => {
  const many = { ...MANIFEST, layers: Array(1000).fill(CONFIG) };
  assertEquals(read(many).layers.length, 1000);
  const large = text.padEnd(1024 * 1024);
  assertEquals(read(large).layers, [LAYER]);
  await refused(`${large} `, "it has 1048577 bytes, more than 1048576");
  // The manifest itself is the first of 32 levels.
  const deep = (levels: number) =>
    text.replace("{", `{"x":${"[".repeat(levels)}${"]".repeat(levels)},`);
  assertEquals(read(deep(31)).layers, [LAYER]);
  await refused(deep(32), "nested too deeply");
  const empty = { ...LAYER, size: 0 };
  assertEquals(read({ ...MANIFEST, layers: [empty] }).layers, [empty]);
});

Deno.test("of what is malformed a hundred characters are shown", async () => {
  const layers = ["x".repeat(200)];
  await refused({ ...MANIFEST, layers }, `malformed: "${"x".repeat(99)}…`);
});

Deno.test("an index names its manifests by processor, a thousand at most", () => {
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
  assertEquals(
    found([of("amd64"), other, of(7), of("x", "sha512:a"), of("arm64")]),
    [
      { digest: DIGEST, architecture: "amd64", os: "linux" },
      { digest: DIGEST, architecture: "arm64", os: "linux" },
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
    { digest: DIGEST, architecture: "arm" },
  ]);
  assertEquals(found(Array(1001).fill(of("amd64")))!.length, 1000);
  const [{ architecture }] = found([of("y".repeat(50))])!;
  assertEquals(architecture, `${"y".repeat(40)}…`);
  assertEquals(found(undefined), []);
});

Deno.test("a manifest is refused for a layer that is no descriptor", async () => {
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
    { ...LAYER, annotations: { [TITLE]: 7 } },
  ];
  for (const layer of nonsense) {
    await refused({ ...MANIFEST, layers: [LAYER, layer] }, "is malformed");
  }
});

Deno.test("any bytes and any JSON are read or refused", () => {
  const attempt = (bytes: Uint8Array) => {
    try {
      readManifest(bytes, ASKED, DIGEST);
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

Deno.test("a descriptor is read as it was written", () => {
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

Deno.test("a manifest of the largest size takes no more than linear time", async () => {
  const whole = (fill: (length: number) => string) =>
    text.replace("image.qcow2", fill(1024 * 1024 - text.length));
  const largest = [
    whole((length) => "a/".repeat(length / 2)),
    whole((length) => "\\u0041".repeat(length / 6)),
    whole((length) => '\\"'.repeat(length / 2)),
    text.replace("{", `{${'"":[],'.repeat(170_000)}`),
    text.replace("{", `{"x":[${"{},".repeat(300_000)}0],`),
  ];
  for (const manifest of largest) {
    const begun = performance.now();
    await Promise.resolve().then(() => read(manifest)).catch(() => {});
    assert(performance.now() - begun < 5000, "it took long");
  }
});
