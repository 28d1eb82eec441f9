/**
 * The JSON Schema for editors and parseManifest() must accept the same manifests.
 */
import { assert, assertEquals } from "@std/assert";
import { Ajv2020 } from "ajv";
import { ToolsmithError } from "../../lib/errors.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";

const DIGEST = "0123456789abcdef".repeat(4);
const IMAGE = {
  name: "demo",
  qcow2: "oci://ghcr.io/owner/repo:1.0",
  qcow2_sha256: DIGEST,
};

/** A valid manifest with these image fields replaced. */
function image(fields: Record<string, unknown>) {
  return { image: { ...IMAGE, ...fields } };
}

const WORKFLOW =
  "https://github.com/owner/repo/.github/workflows/publish.yml@refs/heads/main";
const KEY = "-----BEGIN PUBLIC KEY-----\nMFkw+/w==\n-----END PUBLIC KEY-----";

function signature(fields: Record<string, unknown>) {
  return image({ signature: fields });
}

const GOOD: Record<string, unknown> = {
  "a minimal manifest": { image: IMAGE },
  "the guide's example": {
    image: { ...IMAGE, tarball: "", sha256: "" },
    tools: {},
    operations: [],
  },
  "a manifest with all fields": {
    $schema: "https://jsr.io/@fountain/toolsmith/tools.schema.json",
    image: { ...IMAGE, tarball: "root.tar", sha256: `sha256:${DIGEST}` },
    tools: { gcc: "/usr/bin/gcc", ld: { path: "/usr/bin/ld" } },
    operations: ["gcc", "strip"],
  },
  "x- fields at every level": {
    "x-top": { a: [1] },
    image: { ...IMAGE, "x-image": null },
    tools: {
      ld: { path: "/usr/bin/ld", "x-tool": 7 },
      "x-tools": { note: "" },
      "x-ray": "/usr/bin/x-ray",
    },
  },
  "a name with blanks and accents": image({ name: "Größe 2.0-rc_1" }),
  "a name of 128 letters": image({ name: "n".repeat(128) }),
  "a digest in upper case": image({ qcow2_sha256: DIGEST.toUpperCase() }),
  "a prefixed digest": image({ qcow2_sha256: `SHA256:${DIGEST}` }),
  "a digest with surrounding blanks": image({ qcow2_sha256: ` ${DIGEST}\n` }),
  "a blank tarball": image({ tarball: " ", sha256: "\t" }),
  "an empty tarball without a digest": image({ tarball: "" }),
  "a registry with a port": image({ qcow2: "oci://127.0.0.1:5000/a:1" }),
  "an IPv6 registry": image({ qcow2: "oci://[::1]:5000/a/b/c:1" }),
  "a scheme in upper case": image({ qcow2: "OCI://ghcr.io/a/b:1" }),
  "a reference without a tag": image({ qcow2: "oci://ghcr.io/a/b" }),
  "a reference by digest": image({
    qcow2: `oci://ghcr.io/a/b@sha256:${DIGEST}`,
  }),
  "a reference by tag and digest": image({
    qcow2: `oci://ghcr.io/a-b/c__d.e:1.0@sha256:${DIGEST}`,
  }),
  "an https address": image({ qcow2: "https://example.com/a@b.qcow2?x=1" }),
  "a file URL": image({ qcow2: "file:///srv/image.qcow2" }),
  "a file URL of localhost": image({ qcow2: "file://localhost/image.qcow2" }),
  "a relative file URL": image({ qcow2: "file:image.qcow2" }),
  "an absolute path": image({ qcow2: "/srv/image.qcow2" }),
  "a signature of a workflow": signature({ identity: WORKFLOW }),
  "a signature of any ref": signature({ identity: `${WORKFLOW}*` }),
  "a signature with all fields": signature({
    identity: WORKFLOW,
    issuer: "https://token.example.com",
    repository: "https://github.com/owner/caller",
    "x-note": 1,
  }),
  "a signature of an e-mail address": signature({
    identity: "a@example.com",
    issuer: "https://a.example",
  }),
  "a signature of a key": signature({ key: `${KEY}\n` }),
  "a signature of a key with a blank identity": signature({
    key: KEY,
    identity: " ",
  }),
  "a relative path": image({ qcow2: "../dist/my image.qcow2" }),
};

const BAD: Record<string, unknown> = {
  "an array instead of an object": [IMAGE],
  "null": null,
  "a manifest without an image": { tools: {} },
  "an image that is a string": { image: "demo" },
  "an unknown field": { image: IMAGE, tool: {} },
  "an unknown field of the image": image({ qcow: "x" }),
  "an image catalog": { toolsmith: { images: [IMAGE] } },
  "a $schema that is not a string": { $schema: 7, image: IMAGE },
  "an image without a name": {
    image: { qcow2: IMAGE.qcow2, qcow2_sha256: DIGEST },
  },
  "a name that is a number": image({ name: 7 }),
  "an empty name": image({ name: "" }),
  "a blank name": image({ name: "  " }),
  "a name with a parent directory": image({ name: "../x" }),
  "a name that is a path": image({ name: "a/b" }),
  "a name that is a dot": image({ name: "." }),
  "a name reserved by Windows": image({ name: "Con" }),
  "a name reserved by Windows, with an extension": image({ name: "lpt1.x" }),
  "a name that begins with a dot": image({ name: ".cache" }),
  "a name that ends with a dot": image({ name: "demo." }),
  "a name with a backslash": image({ name: "a\\b" }),
  "a name with a control character": image({ name: "a\u0007b" }),
  "a name of 129 letters": image({ name: "n".repeat(129) }),
  "an image without a source": {
    image: { name: "demo", qcow2_sha256: DIGEST },
  },
  "an empty source": image({ qcow2: "" }),
  "a source that is null": image({ qcow2: null }),
  "a reference without a repository": image({ qcow2: "oci://ghcr.io" }),
  "a reference in upper case": image({ qcow2: "oci://ghcr.io/Owner/b:1" }),
  "a reference with an empty tag": image({ qcow2: "oci://ghcr.io/a/b:" }),
  "a reference with a short digest": image({
    qcow2: "oci://ghcr.io/a/b@sha256:abc",
  }),
  "an http address": image({ qcow2: "http://example.com/a.qcow2" }),
  "an https address with a user": image({
    qcow2: "https://user@example.com/a.qcow2",
  }),
  "an https address with a password": image({
    qcow2: "https://user:secret@example.com/a.qcow2",
  }),
  "a source with another scheme": image({ qcow2: "docker://ghcr.io/a/b:1" }),
  "a file URL of another host": image({ qcow2: "file://image.qcow2" }),
  "an image without a digest": { image: { name: "demo", qcow2: IMAGE.qcow2 } },
  "an empty digest": image({ qcow2_sha256: "" }),
  "a short digest": image({ qcow2_sha256: DIGEST.slice(1) }),
  "a digest that is not hex": image({ qcow2_sha256: "g".repeat(64) }),
  "a digest with another algorithm": image({
    qcow2_sha256: `sha512:${DIGEST}`,
  }),
  "a tarball without a digest": image({ tarball: "root.tar", sha256: "" }),
  "a tarball and no field for its digest": image({ tarball: "root.tar" }),
  "a digest without a tarball": image({ sha256: DIGEST }),
  "a tarball with a bad digest": image({ tarball: "root.tar", sha256: "x" }),
  "a tarball that is a list": image({ tarball: [], sha256: "" }),
  "a signature that is text": image({ signature: "me" }),
  "an empty signature": signature({}),
  "a signature with an unknown field": signature({ identity: WORKFLOW, id: 1 }),
  "a signature of everybody": signature({ identity: "*" }),
  "a signature of any repository": signature({
    identity: "https://github.com/*/w.yml@main",
  }),
  "a signature of two globs": signature({ identity: `${WORKFLOW}*/*` }),
  "a signature of a workflow without a ref": signature({
    identity: "https://github.com/owner/repo/w.yml@",
  }),
  "a signature of an e-mail address without an issuer": signature({
    identity: "a@example.com",
  }),
  "a signature of another host without an issuer": signature({
    identity: "https://gitlab.com/o/r//ci.yml@main",
  }),
  "a signature with a bad issuer": signature({
    identity: WORKFLOW,
    issuer: "github",
  }),
  "a signature with a bad repository": signature({
    identity: WORKFLOW,
    repository: "owner/repo",
  }),
  "a signature of a private key": signature({
    key: KEY.replaceAll("PUBLIC", "PRIVATE"),
  }),
  "a signature of a key and an identity": signature({
    key: KEY,
    identity: WORKFLOW,
  }),
  "a signature of an https image": image({
    qcow2: "https://example.com/a.qcow2",
    signature: { identity: WORKFLOW },
  }),
  "a signature of a file": image({
    qcow2: "a.qcow2",
    signature: { key: KEY },
  }),
  "a list of tools": { image: IMAGE, tools: ["/usr/bin/gcc"] },
  "a tool with a relative path": { image: IMAGE, tools: { gcc: "gcc" } },
  "a tool without a path": { image: IMAGE, tools: { gcc: {} } },
  "a tool with unknown fields": {
    image: IMAGE,
    tools: { gcc: { path: "/usr/bin/gcc", args: [] } },
  },
  "operations that are a string": { image: IMAGE, operations: "gcc" },
  "an empty operation": { image: IMAGE, operations: [""] },
  "an operation that is a number": { image: IMAGE, operations: [1] },
};

function validator(manifest: unknown): boolean {
  try {
    parseManifest(JSON.stringify(manifest), "/srv/tools.json");
    return true;
  } catch (error) {
    assert(error instanceof ToolsmithError, `threw ${error}`);
    return false;
  }
}

const SCHEMA = JSON.parse(
  await Deno.readTextFile(`${PROJECT_ROOT}/docs/tools.schema.json`),
);
const schema = new Ajv2020({ strictTypes: false }).compile(SCHEMA);

for (const [good, corpus] of [[true, GOOD], [false, BAD]] as const) {
  for (const [name, manifest] of Object.entries(corpus)) {
    Deno.test(`tools.schema.json and parseManifest() ${good ? "accept" : "reject"} ${name}`, () => {
      assertEquals(
        { validator: validator(manifest), schema: schema(manifest) },
        { validator: good, schema: good },
      );
    });
  }
}

Deno.test("tools.schema.json has a description for every field", () => {
  const fields = { ...SCHEMA.properties, ...SCHEMA.$defs.image.properties };
  for (const [name, field] of Object.entries<Record<string, string>>(fields)) {
    const { description } = field.$ref
      ? SCHEMA.$defs[field.$ref.replace("#/$defs/", "")]
      : field;
    assert(description?.endsWith("."), name);
  }
});

Deno.test("tools.schema.json and parseManifest() accept the same fields", () => {
  const refusal = (manifest: unknown) => {
    try {
      parseManifest(JSON.stringify(manifest), "/srv/tools.json");
    } catch (error) {
      return (error as ToolsmithError).hint;
    }
  };
  const list = (names: string[]) =>
    `use one of these fields: ${names.join(", ")}`;
  const sorted = (hint?: string) =>
    hint?.replace("use one of these fields: ", "").split(", ").sort();
  assertEquals(
    sorted(refusal({ other: 1 })),
    sorted(list(Object.keys(SCHEMA.properties))),
  );
  assertEquals(
    sorted(refusal(image({ other: 1 }))),
    sorted(list(
      Object.keys(SCHEMA.$defs.image.properties).map((key) => `image.${key}`),
    )),
  );
});
