import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  type Artifact,
  type Descriptor,
  isPlainTitle,
  selectImageLayer,
  TITLE,
} from "../../lib/oci/artifact.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { asDigest } from "../../lib/system/digest.ts";
import { oneLine } from "../../lib/system/text.ts";
import { failure } from "../support/failure.ts";

const A = "a".repeat(64);
const B = "b".repeat(64);
const MANIFEST = "application/vnd.oci.image.manifest.v1+json";

function layer(title: string | undefined, hex = A): Descriptor {
  const annotations = title === undefined ? undefined : { [TITLE]: title };
  const digest = `sha256:${hex}`;
  return { mediaType: "application/x", digest, size: 7, annotations };
}

function artifact(...layers: Descriptor[]): Artifact {
  const digest = asDigest("d".repeat(64));
  return {
    reference: parseReference(`ghcr.io/owner/repo@${digest}`),
    digest,
    mediaType: MANIFEST,
    layers,
  };
}

Deno.test("the one .qcow2 is the image, whatever else is there", () => {
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

Deno.test("among several images the one with the digest is taken", () => {
  const both = artifact(layer("a.qcow2", A), layer("b.qcow2", B));
  assertEquals(selectImageLayer(both, B).title, "b.qcow2");
});

Deno.test("an artifact without an image says so in the guide's words", async () => {
  const error = await failure(
    "payload_missing",
    () => selectImageLayer(artifact(layer("a.txt"), layer(undefined)), A),
  );
  assertStringIncludes(error.message, "No .qcow2 payload found");
  assertStringIncludes(error.hint!, "use a .qcow2 filename");
});

Deno.test("an index says that a manifest in it must be named", async () => {
  const index = {
    ...artifact(),
    mediaType: "application/vnd.oci.image.index.v1+json",
  };
  const error = await failure(
    "payload_missing",
    () => selectImageLayer(index, A),
  );
  assertStringIncludes(error.hint!, "it is an index");
});

Deno.test("several images and no fitting digest: all are listed to choose from", async () => {
  const both = artifact(layer("a.qcow2", A), layer("b.qcow2", B));
  for (const expected of ["c".repeat(64), undefined]) {
    const error = await failure(
      "payload_ambiguous",
      () => selectImageLayer(both, expected),
    );
    assertStringIncludes(error.hint!, `${A} (a.qcow2), ${B} (b.qcow2)`);
  }
});

Deno.test("another digest than expected: both are shown", async () => {
  const error = await failure(
    "checksum_mismatch",
    () => selectImageLayer(artifact(layer("a.qcow2", A)), B),
  );
  assertStringIncludes(error.message, `expected ${B}`);
  assertStringIncludes(error.message, `the registry has ${A}`);
  assertStringIncludes(error.hint!, "nothing was downloaded");
});

Deno.test("selectImageLayer() takes a sole image with a sha512 digest, to be hashed", async () => {
  const digest = `sha512:${"a".repeat(128)}`;
  const other = { ...layer("a.qcow2"), digest };
  const wanted = { title: "a.qcow2", size: 7, digest, sha256: A };
  assertEquals(selectImageLayer(artifact(other), A), wanted);
  // A digest that says so comes first, and one that says otherwise never fits.
  const both = artifact(other, layer("b.qcow2", B));
  assertEquals(selectImageLayer(both, B).title, "b.qcow2");
  assertEquals(selectImageLayer(both, A).title, "a.qcow2");
  const two = artifact(other, { ...other, ...layer("c.qcow2"), digest });
  await failure("payload_ambiguous", () => selectImageLayer(two, A));
  const malformed = { ...layer("a.qcow2"), digest: "sha256:abc" };
  await failure(
    "checksum_mismatch",
    () => selectImageLayer(artifact(malformed), A),
  );
});

Deno.test("selectImageLayer() asks for the SHA-256 where only a sha512 digest is known", async () => {
  const digest = `sha512:${"a".repeat(128)}`;
  const { message, hint } = await failure(
    "usage",
    () => selectImageLayer(artifact({ ...layer("a.qcow2"), digest })),
  );
  assertStringIncludes(message, `its digest is ${digest}`);
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
  Deno.test(`a layer titled ${JSON.stringify(title)} is refused`, async () => {
    assert(!isPlainTitle(title));
    const files = artifact(layer("image.qcow2"), layer(title, B));
    const error = await failure(
      "artifact_unsafe",
      () => selectImageLayer(files, A),
    );
    assertStringIncludes(error.message, "is not a plain relative path");
    assertStringIncludes(error.message, oneLine(JSON.stringify(title)));
  });
}

Deno.test("plain titles are not refused", () => {
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
    assert(isPlainTitle(title), title);
  }
});

const TWICE: Record<string, [string, string]> = {
  "the same title": ["a.txt", "a.txt"],
  "the same with ./": ["a.txt", "./a.txt"],
  "the same with .//": ["a.txt", ".//a.txt"],
  "the same in upper case": ["a.txt", "A.TXT"],
  "the same in other accents": ["\u00e4.txt", "a\u0308.txt"],
  "the same with a long s": ["is.txt", "i\u017f.txt"],
  "the same with a kelvin sign": ["k.txt", "\u212a.txt"],
  "a file in a file": ["a", "a/b.txt"],
  "a file in a file, the other way round": ["x/a/b.txt", "X/A"],
};

for (const [name, [one, other]] of Object.entries(TWICE)) {
  Deno.test(`two layers with ${name} are refused`, async () => {
    const files = artifact(layer("i.qcow2"), layer(one, B), layer(other, B));
    await failure("artifact_unsafe", () => selectImageLayer(files, A));
  });
}

Deno.test("a layer that oras would unpack is refused, with a title and without", async () => {
  for (const title of ["image.qcow2", undefined]) {
    const tar = layer(title);
    tar.annotations = {
      ...tar.annotations,
      "io.deis.oras.content.unpack": "true",
    };
    const error = await failure(
      "artifact_unsafe",
      () => selectImageLayer(artifact(layer("i.qcow2"), tar), A),
    );
    assertStringIncludes(error.message, "would be unpacked");
  }
});

Deno.test("a layer that is a manifest is refused: oras would pull its files, too", async () => {
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
      const error = await failure(
        "artifact_unsafe",
        () => selectImageLayer(artifact(layer("i.qcow2"), nested), A),
      );
      assertStringIncludes(error.message, "names further files");
    }
  }
});

Deno.test("a title that is too long or too deep is refused", async () => {
  const long = ["a".repeat(513), `${"a/".repeat(16)}b`, "a".repeat(256)];
  for (const title of long) {
    const files = artifact(layer("i.qcow2"), layer(title, B));
    await failure("artifact_unsafe", () => selectImageLayer(files, A));
  }
  const deep = `${"a/".repeat(15)}${"b".repeat(255)}`;
  const most = `${"c".repeat(255)}/${"d".repeat(254)}/e`;
  assertEquals(most.length, 512);
  for (const title of [deep, most]) {
    const files = artifact(layer("i.qcow2"), layer(title, B));
    assertEquals(selectImageLayer(files, A).title, "i.qcow2");
  }
  const more = artifact(layer("i.qcow2"), layer(`${most}f`, B));
  await failure("artifact_unsafe", () => selectImageLayer(more, A));
});

Deno.test("a subject that oras would write is refused, any other is not", async () => {
  const subject = { ...layer(undefined, B), mediaType: MANIFEST };
  const files = { ...artifact(layer("i.qcow2")), subject };
  assertEquals(selectImageLayer(files, A).title, "i.qcow2");
  const unpack = { "io.deis.oras.content.unpack": "true" };
  for (const annotations of [{ [TITLE]: "x" }, { [TITLE]: "" }, unpack]) {
    const titled = { ...files, subject: { ...subject, annotations } };
    const error = await failure(
      "artifact_unsafe",
      () => selectImageLayer(titled, A),
    );
    assertStringIncludes(error.message, "is a subject");
  }
});

Deno.test("a configuration is held to the same rules: oras pulls a titled one", async () => {
  const files = artifact(layer("i.qcow2"));
  await failure(
    "artifact_unsafe",
    () => selectImageLayer({ ...files, config: layer("../x", B) }, A),
  );
  const config = { ...layer(undefined, B), mediaType: MANIFEST };
  await failure(
    "artifact_unsafe",
    () => selectImageLayer({ ...files, config }, A),
  );
  const plain = { ...files, config: layer(undefined, B) };
  assertEquals(selectImageLayer(plain, A).title, "i.qcow2");
});
