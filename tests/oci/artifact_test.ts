import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  type Artifact,
  type Descriptor,
  isPortableTitle,
  selectImageLayer,
  TITLE_ANNOTATION,
} from "../../lib/oci/artifact.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { sha256ToDigest } from "../../lib/system/digest.ts";
import { sanitizeLine } from "../../lib/system/sanitize_text.ts";
import { expectFailure } from "../support/expect_failure.ts";

const A = "a".repeat(64);
const B = "b".repeat(64);
const MANIFEST = "application/vnd.oci.image.manifest.v1+json";

function layer(title: string | undefined, hex = A): Descriptor {
  const annotations = title === undefined
    ? undefined
    : { [TITLE_ANNOTATION]: title };
  const digest = `sha256:${hex}`;
  return { mediaType: "application/x", digest, size: 7, annotations };
}

function artifact(...layers: Descriptor[]): Artifact {
  const digest = sha256ToDigest("d".repeat(64));
  return {
    reference: parseReference(`ghcr.io/owner/repo@${digest}`),
    digest,
    layers,
  };
}

Deno.test("selectImageLayer() selects the only .qcow2 layer and ignores other layers", () => {
  const files = artifact(
    layer("notes.txt", B),
    layer(undefined, B),
    layer("./dist/Image.QCOW2"),
  );
  const expected = {
    title: "dist/Image.QCOW2",
    size: 7,
    digest: `sha256:${A}`,
    sha256: A,
  };
  assertEquals(selectImageLayer(files, A), expected);
  assertEquals(selectImageLayer(files), expected);
});

Deno.test("selectImageLayer() selects the layer with the expected SHA-256 from several .qcow2 layers", () => {
  const both = artifact(layer("a.qcow2", A), layer("b.qcow2", B));
  assertEquals(selectImageLayer(both, B).title, "b.qcow2");
});

Deno.test("selectImageLayer() throws payload_missing with the documented message if there is no .qcow2 layer", async () => {
  const error = await expectFailure(
    "payload_missing",
    () => selectImageLayer(artifact(layer("a.txt"), layer(undefined)), A),
  );
  assertStringIncludes(error.message, "No .qcow2 payload found");
  assertStringIncludes(error.hint!, "use a .qcow2 filename");
});

Deno.test("selectImageLayer() asks for a manifest digest when the artifact is an index", async () => {
  const index = { ...artifact(), manifests: [] };
  const error = await expectFailure(
    "payload_missing",
    () => selectImageLayer(index, A),
  );
  assertStringIncludes(error.hint!, "the reference names an index");
});

Deno.test("selectImageLayer() lists all .qcow2 layers when none matches the expected SHA-256", async () => {
  const both = artifact(layer("a.qcow2", A), layer("b.qcow2", B));
  for (const expected of ["c".repeat(64), undefined]) {
    const error = await expectFailure(
      "payload_ambiguous",
      () => selectImageLayer(both, expected),
    );
    assertStringIncludes(error.hint!, `${A} (a.qcow2), ${B} (b.qcow2)`);
  }
});

Deno.test("selectImageLayer() reports the expected and the actual SHA-256 on a mismatch", async () => {
  const error = await expectFailure(
    "checksum_mismatch",
    () => selectImageLayer(artifact(layer("a.qcow2", A)), B),
  );
  assertStringIncludes(error.message, `expected ${B}`);
  assertStringIncludes(error.message, `the registry has ${A}`);
  assertStringIncludes(error.hint!, "nothing was downloaded");
});

Deno.test("selectImageLayer() selects the only layer with a sha512 digest if no layer has the expected SHA-256", async () => {
  const digest = `sha512:${"a".repeat(128)}`;
  const other = { ...layer("a.qcow2"), digest };
  const wanted = { title: "a.qcow2", size: 7, digest, sha256: A };
  assertEquals(selectImageLayer(artifact(other), A), wanted);
  // A matching SHA-256 has precedence, and another SHA-256 never matches.
  const both = artifact(other, layer("b.qcow2", B));
  assertEquals(selectImageLayer(both, B).title, "b.qcow2");
  assertEquals(selectImageLayer(both, A).title, "a.qcow2");
  const two = artifact(other, { ...other, ...layer("c.qcow2"), digest });
  await expectFailure("payload_ambiguous", () => selectImageLayer(two, A));
  const malformed = { ...layer("a.qcow2"), digest: "sha256:abc" };
  await expectFailure(
    "checksum_mismatch",
    () => selectImageLayer(artifact(malformed), A),
  );
});

Deno.test("selectImageLayer() asks for --sha256 when no SHA-256 is expected and the layer has a sha512 digest", async () => {
  const digest = `sha512:${"a".repeat(128)}`;
  const { message, hint } = await expectFailure(
    "usage",
    () => selectImageLayer(artifact({ ...layer("a.qcow2"), digest })),
  );
  assertStringIncludes(message, `the registry has the digest ${digest}`);
  assertStringIncludes(hint!, "--sha256 HEX");
});

const UNSAFE_TITLES = [
  "../image.qcow2",
  "a/../../b",
  "/etc/passwd",
  "C:\\x",
  "c:x",
  "a\\b",
  "a//b",
  "a/./b",
  "a/",
  "..",
  ".",
  "",
  "./",
  "a\nb",
  "a\u0000b",
  "image.qcow2.",
  "image.qcow2 ",
  "x.qcow2:ads",
  "nul.qcow2",
  "nul .qcow2",
  "con",
  "COM1.qcow2",
  "lpt\u00b9.qcow2",
  "a/aux/b",
  "a. /b",
  "a<b>",
  'a"b',
  "a|b",
  "a?b",
  "a*b",
  "...",
  "a\ud800b",
  "image\u202e2wocq.qcow2",
  "a\u2028b",
];

for (const title of UNSAFE_TITLES) {
  Deno.test(`selectImageLayer() rejects a layer titled ${JSON.stringify(title)}`, async () => {
    assert(!isPortableTitle(title));
    const files = artifact(layer("image.qcow2"), layer(title, B));
    const error = await expectFailure(
      "artifact_unsafe",
      () => selectImageLayer(files, A),
    );
    assertStringIncludes(error.message, "is not a plain relative path");
    assertStringIncludes(error.message, sanitizeLine(JSON.stringify(title)));
  });
}

Deno.test("isPortableTitle() accepts plain relative paths", () => {
  for (
    const title of [
      "a",
      "./a",
      ".a",
      "a b",
      "...a",
      "ä/b.qcow2",
      "-a",
      "console",
      "com",
    ]
  ) {
    assert(isPortableTitle(title), title);
  }
});

const TWICE: Record<string, [string, string]> = {
  "the same title": ["a.txt", "a.txt"],
  "the same title with ./": ["a.txt", "./a.txt"],
  "the same title with .//": ["a.txt", ".//a.txt"],
  "titles that differ only in case": ["a.txt", "A.TXT"],
  "titles that differ only in Unicode normalization": [
    "\u00e4.txt",
    "a\u0308.txt",
  ],
  "titles that differ only in s and long s": ["is.txt", "i\u017f.txt"],
  "titles that differ only in k and the Kelvin sign": ["k.txt", "\u212a.txt"],
  "one title below the other": ["a", "a/b.txt"],
  "one title above the other, in another case": ["x/a/b.txt", "X/A"],
};

for (const [name, [one, other]] of Object.entries(TWICE)) {
  Deno.test(`selectImageLayer() rejects two layers with ${name}`, async () => {
    const files = artifact(layer("i.qcow2"), layer(one, B), layer(other, B));
    await expectFailure("artifact_unsafe", () => selectImageLayer(files, A));
  });
}

Deno.test("selectImageLayer() rejects a layer that oras would unpack, with or without a title", async () => {
  for (const title of ["image.qcow2", undefined]) {
    const tar = layer(title);
    tar.annotations = {
      ...tar.annotations,
      "io.deis.oras.content.unpack": "true",
    };
    const error = await expectFailure(
      "artifact_unsafe",
      () => selectImageLayer(artifact(layer("i.qcow2"), tar), A),
    );
    assertStringIncludes(error.message, "would be unpacked");
  }
});

Deno.test("selectImageLayer() rejects a layer that is a manifest, because oras would pull its files", async () => {
  const types = [
    MANIFEST,
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.artifact.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
  ];
  for (const mediaType of types) {
    for (const title of [undefined, "notes.json"]) {
      const nested = { ...layer(title, B), mediaType };
      const error = await expectFailure(
        "artifact_unsafe",
        () => selectImageLayer(artifact(layer("i.qcow2"), nested), A),
      );
      assertStringIncludes(error.message, "whose files oras would pull");
    }
  }
});

Deno.test("selectImageLayer() rejects a title of more than 512 characters or 16 path segments", async () => {
  const long = ["a".repeat(513), `${"a/".repeat(16)}b`, "a".repeat(256)];
  for (const title of long) {
    const files = artifact(layer("i.qcow2"), layer(title, B));
    await expectFailure("artifact_unsafe", () => selectImageLayer(files, A));
  }
  const deep = `${"a/".repeat(15)}${"b".repeat(255)}`;
  const most = `${"c".repeat(255)}/${"d".repeat(254)}/e`;
  assertEquals(most.length, 512);
  for (const title of [deep, most]) {
    const files = artifact(layer("i.qcow2"), layer(title, B));
    assertEquals(selectImageLayer(files, A).title, "i.qcow2");
  }
  const more = artifact(layer("i.qcow2"), layer(`${most}f`, B));
  await expectFailure("artifact_unsafe", () => selectImageLayer(more, A));
});

Deno.test("selectImageLayer() rejects a subject only if oras would write it to disk", async () => {
  const subject = { ...layer(undefined, B), mediaType: MANIFEST };
  const files = { ...artifact(layer("i.qcow2")), subject };
  assertEquals(selectImageLayer(files, A).title, "i.qcow2");
  const unpack = { "io.deis.oras.content.unpack": "true" };
  for (
    const annotations of [{ [TITLE_ANNOTATION]: "x" }, {
      [TITLE_ANNOTATION]: "",
    }, unpack]
  ) {
    const titled = { ...files, subject: { ...subject, annotations } };
    const error = await expectFailure(
      "artifact_unsafe",
      () => selectImageLayer(titled, A),
    );
    assertStringIncludes(error.message, "is a subject");
  }
});

Deno.test("selectImageLayer() applies the layer rules to the config, because oras pulls a titled config", async () => {
  const files = artifact(layer("i.qcow2"));
  await expectFailure(
    "artifact_unsafe",
    () => selectImageLayer({ ...files, config: layer("../x", B) }, A),
  );
  const config = { ...layer(undefined, B), mediaType: MANIFEST };
  await expectFailure(
    "artifact_unsafe",
    () => selectImageLayer({ ...files, config }, A),
  );
  const plain = { ...files, config: layer(undefined, B) };
  assertEquals(selectImageLayer(plain, A).title, "i.qcow2");
});
