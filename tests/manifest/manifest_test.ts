import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import type { ErrorCode } from "../../lib/errors.ts";
import { toShortJson } from "../../lib/manifest/_json_field.ts";
import {
  isValidImageName,
  loadManifest,
  locateManifest,
  parseManifest,
} from "../../lib/manifest/manifest.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { temporaryDir } from "../support/directory.ts";

const FILE = "/srv/project/.toolsmith/tools.json";
const DIGEST = "0123456789abcdef".repeat(4);
const IMAGE = {
  name: "demo",
  tarball: "",
  sha256: "",
  qcow2: "oci://ghcr.io/owner/repo:1.0",
  qcow2_sha256: DIGEST,
};
const GOOD = { image: IMAGE, tools: {}, operations: [] };

const parse = (manifest: unknown) =>
  parseManifest(JSON.stringify(manifest), FILE);

Deno.test("parseManifest() reads the example manifest of the guide", () => {
  assertEquals(parse(GOOD), {
    path: FILE,
    workspace: "/srv/project",
    image: {
      name: "demo",
      sha256: DIGEST,
      source: {
        kind: "oci",
        registry: "ghcr.io",
        repository: "owner/repo",
        tag: "1.0",
      },
    },
    tools: {},
    operations: [],
  });
});

Deno.test("parseManifest() returns the fields tarball, tools and operations", () => {
  const { image, tools, operations } = parse({
    $schema: "x",
    image: { ...IMAGE, tarball: "root.tar", sha256: `sha256:${DIGEST}` },
    tools: { gcc: "/usr/bin/gcc", ld: { path: "/usr/bin/ld" } },
    operations: ["gcc"],
  });
  assertEquals([image.tarball, image.tarballSha256], ["root.tar", DIGEST]);
  assertEquals(tools, { gcc: "/usr/bin/gcc", ld: "/usr/bin/ld" });
  assertEquals(operations, ["gcc"]);
});

Deno.test("parseManifest() rejects a duplicate key and names the key", async () => {
  const [image, tools] = [JSON.stringify(IMAGE), '{"a": "/a"}'];
  const repeated: [string, string][] = [
    [`{"image": ${image}, "image": ${image}}`, "image"],
    [`{"image": ${image}, "operations": [], "operations": []}`, "operations"],
    // The same key, escaped.
    [
      `{"image": ${image}, "operations": [], "o\\u0070erations": []}`,
      "operations",
    ],
    [`{"image": ${image.replace("{", '{"name": "other",')}}`, "image.name"],
    [
      `{"image": ${image}, "tools": ${tools.replace("{", '{"a": "/b",')}}`,
      "tools.a",
    ],
    [
      `{"image": ${image}, "tools": {"a": {"path": "/a", "path": "/b"}}}`,
      "tools.a.path",
    ],
  ];
  for (const [text, field] of repeated) {
    const error = await expectFailure(
      "manifest_invalid",
      () => parseManifest(text, FILE),
    );
    assertEquals(error.message, `${FILE}: ${field}: duplicate key`);
  }
  // The same key in two objects, in a string, or in an x- field.
  const fine =
    `{"image": ${image}, "x-a": [{"a": 1}, {"a": 2}, {"b": 1, "b": 2}],
    "operations": ["a\\"", "operations:", "{"]}`;
  assertEquals(parseManifest(fine, FILE).operations.length, 3);
});

Deno.test("parseManifest() ignores x- fields and rejects misspelt fields", async () => {
  const tools = {
    "x-note": { a: 1 },
    "x-ray": "/x",
    ld: { path: "/ld", "x-a": 1 },
  };
  const manifest = parse({
    ...GOOD,
    "x-b": 1,
    image: { ...IMAGE, "x-c": 2 },
    tools,
  });
  assertEquals(manifest.tools, { "x-ray": "/x", ld: "/ld" });
  for (const name of ["X-a", "x_a", "xa"]) {
    const wrong = { ...GOOD, [name]: 1 };
    await expectFailure("manifest_invalid", () => parse(wrong));
  }
});

Deno.test("parseManifest() rejects JSON that is nested 100,000 levels deep", async () => {
  const deep = "[".repeat(100_000) + "]".repeat(100_000);
  const text = `{"image": ${deep}}`;
  const error = await expectFailure(
    "manifest_invalid",
    () => parseManifest(text, FILE),
  );
  assertStringIncludes(error.message, "nested too deeply");
});

Deno.test("parseManifest() accepts a manifest without tools and operations", () => {
  const { tools, operations } = parse({ image: IMAGE });
  assertEquals([tools, operations], [{}, []]);
});

Deno.test("parseManifest() accepts __proto__ and toString as tool names", () => {
  const text = `{"image":${
    JSON.stringify(IMAGE)
  },"tools":{"__proto__":"/p","toString":"/t"}}`;
  const { tools } = parseManifest(text, FILE);
  assertEquals(Object.keys(tools), ["__proto__", "toString"]);
  assertEquals(Object.getPrototypeOf(tools), Object.prototype);
});

Deno.test("parseManifest() resolves a relative image path against the manifest's directory", () => {
  const { image } = parse({ image: { ...IMAGE, qcow2: "../dist/a.qcow2" } });
  assertEquals(image.source, {
    kind: "file",
    path: "/srv/project/dist/a.qcow2",
  });
});

/** Invalid manifest, error code, field, and parts of message and hint. */
const WRONG: [unknown, ErrorCode, string, string, string][] = [
  [[], "manifest_invalid", "", "[] is not an object", "docs/consuming.md"],
  [{}, "manifest_invalid", "image", "missing", "docs/consuming.md"],
  [{ image: 7 }, "manifest_invalid", "image", "7 is not an object", "format"],
  [{ ...GOOD, tool: {} }, "manifest_invalid", "tool", "unknown field", "tools"],
  [
    { ...GOOD, $schema: 1 },
    "manifest_invalid",
    "$schema",
    "not a string",
    "double quotes",
  ],
  [
    image({ qcow: "" }),
    "manifest_invalid",
    "image.qcow",
    "unknown field",
    "image.qcow2",
  ],
  [
    image({ name: undefined }),
    "manifest_invalid",
    "image.name",
    "missing",
    "name",
  ],
  [
    image({ name: null }),
    "manifest_invalid",
    "image.name",
    "null is not a string",
    "",
  ],
  [image({ name: "" }), "manifest_invalid", "image.name", "empty", "name"],
  [
    image({ name: "../x" }),
    "manifest_invalid",
    "image.name",
    '"../x" is not a valid directory name',
    "letters",
  ],
  [
    image({ name: "a/b" }),
    "manifest_invalid",
    "image.name",
    '"a/b" is not a valid directory name',
    "letters",
  ],
  [
    image({ name: "." }),
    "manifest_invalid",
    "image.name",
    '"." is not a valid directory name',
    "letters",
  ],
  [
    image({ qcow2: undefined }),
    "manifest_invalid",
    "image.qcow2",
    "missing",
    "oci://",
  ],
  [image({ qcow2: " " }), "manifest_invalid", "image.qcow2", "empty", "oci://"],
  [
    image({ qcow2: ["x"] }),
    "manifest_invalid",
    "image.qcow2",
    '["x"] is not a string',
    "",
  ],
  [
    image({ qcow2: "oci://ghcr.io" }),
    "reference_invalid",
    "image.qcow2",
    "the reference has no repository",
    "REGISTRY/OWNER",
  ],
  [
    image({ qcow2: "http://a/b" }),
    "reference_invalid",
    "image.qcow2",
    "not a supported image source",
    "https://",
  ],
  [
    image({ qcow2_sha256: undefined }),
    "manifest_invalid",
    "image.qcow2_sha256",
    "missing",
    "sha256sum",
  ],
  [
    image({ qcow2_sha256: "" }),
    "manifest_invalid",
    "image.qcow2_sha256",
    "empty",
    "64 hex digits",
  ],
  [
    image({ qcow2_sha256: "abc" }),
    "manifest_invalid",
    "image.qcow2_sha256",
    '"abc" is not a SHA-256',
    "64 hex digits",
  ],
  [
    image({ qcow2_sha256: "<SHA256 of the QCOW2 file>" }),
    "manifest_invalid",
    "image.qcow2_sha256",
    "is not a SHA-256",
    "sha256sum",
  ],
  [
    image({ tarball: "t.tar" }),
    "manifest_invalid",
    "image.sha256",
    "missing, but image.tarball is set",
    "both",
  ],
  [
    image({ sha256: DIGEST }),
    "manifest_invalid",
    "image.tarball",
    "missing, but image.sha256 is set",
    "both",
  ],
  [
    image({ tarball: "t", sha256: "x" }),
    "manifest_invalid",
    "image.sha256",
    '"x" is not a SHA-256',
    "",
  ],
  [
    { ...GOOD, tools: [] },
    "manifest_invalid",
    "tools",
    "[] is not an object",
    "",
  ],
  [
    { ...GOOD, tools: { gcc: "gcc" } },
    "manifest_invalid",
    "tools.gcc",
    "not an absolute path",
    "/usr/bin/gcc",
  ],
  [
    { ...GOOD, tools: { gcc: { path: 1 } } },
    "manifest_invalid",
    "tools.gcc",
    "not an absolute path",
    "",
  ],
  [
    { ...GOOD, tools: { gcc: { args: [] } } },
    "manifest_invalid",
    "tools.gcc.args",
    "unknown field",
    "tools.gcc.path",
  ],
  [
    { ...GOOD, operations: {} },
    "manifest_invalid",
    "operations",
    "{} is not a list",
    '["NAME"]',
  ],
  [
    { ...GOOD, operations: ["a", ""] },
    "manifest_invalid",
    "operations[1]",
    '"" is not a non-empty string',
    "",
  ],
];

function image(fields: Record<string, unknown>) {
  return { image: { ...IMAGE, ...fields } };
}

for (const [manifest, code, field, why, hint] of WRONG) {
  Deno.test(`parseManifest() rejects ${field || "the manifest"}: ${why}`, async () => {
    const error = await expectFailure(code, () => parse(manifest));
    const where = field ? `${FILE}: ${field}: ` : `${FILE}: `;
    assert(error.message.startsWith(where), error.message);
    assertStringIncludes(error.message, why);
    assertStringIncludes(error.hint!, hint);
  });
}

Deno.test("parseManifest() rejects an image catalog and explains how to write a manifest", async () => {
  const catalog = { toolsmith: { images: [IMAGE] }, other: 1 };
  const error = await expectFailure("manifest_invalid", () => parse(catalog));
  assertStringIncludes(error.message, `${FILE}: toolsmith.images: `);
  assertStringIncludes(error.message, "catalog");
  assertStringIncludes(error.hint!, "toolsmith init");
});

Deno.test("parseManifest() does not repeat a huge value in its error message", async () => {
  const tools = { gcc: "x".repeat(100_000) };
  const error = await expectFailure(
    "manifest_invalid",
    () => parse({ ...GOOD, tools }),
  );
  assert(error.message.length < 300);
});

/** Invalid JSON, and the line and column of the error. */
const SYNTAX: [string, string][] = [
  ["", "1:1"],
  ["{", "1:2"],
  ['{\n  "image": {,\n}', "2:13"],
  ['{"a": 1,}', "1:9"],
  ["// comment\n{}", "1:1"],
  ['{\r\n  "a": nope\r\n}', "2:9"],
  ['{"ä": "ö" "b"}', "1:11"],
  ['\uFEFF{"a" 1}', "1:6"],
  ['{\n"a": "line\nbreak"}', "2:11"],
  ['{"a": "open', "1:12"],
  ["{}\n{}", "2:1"],
];

for (const [text, at] of SYNTAX) {
  Deno.test(`parseManifest() reports a syntax error by line and column: ${JSON.stringify(text)}`, async () => {
    const error = await expectFailure(
      "manifest_invalid",
      () => parseManifest(text, FILE),
    );
    assert(
      error.message.startsWith(`${FILE}:${at}: not JSON: `),
      error.message,
    );
    assertStringIncludes(error.hint!, "fix the JSON syntax");
  });
}

Deno.test("parseManifest() ignores a byte order mark", () => {
  assertEquals(
    parseManifest(`\uFEFF${JSON.stringify(GOOD)}`, FILE),
    parse(GOOD),
  );
});

Deno.test("isValidImageName() accepts only a name that is a valid directory name on every system", () => {
  for (const name of ["a", "A-1.2_3", "größe", "a b", "-a", "n".repeat(128)]) {
    assert(isValidImageName(name), name);
  }
  for (
    const name of [
      "",
      ".",
      "..",
      ".a",
      "a.",
      " a",
      "a ",
      "a/b",
      "a\\b",
      "a:b",
      "a*",
      "a?",
      'a"',
      "a<",
      "a>",
      "a|",
      "a\0",
      "a\n",
      "n".repeat(129),
    ]
  ) assert(!isValidImageName(name), JSON.stringify(name));
});

Deno.test("locateManifest() prefers its path argument, then TOOLSMITH_MANIFEST, then .toolsmith/tools.json in the nearest directory", async () => {
  await using dir = await temporaryDir();
  const deep = join(dir.path, "a", "b");
  await Deno.mkdir(deep, { recursive: true });
  await Deno.mkdir(join(dir.path, ".toolsmith"));
  // A directory with this name is skipped.
  await Deno.mkdir(join(dir.path, "a", ".toolsmith", "tools.json"), {
    recursive: true,
  });
  const usual = join(dir.path, ".toolsmith", "tools.json");
  await Deno.writeTextFile(usual, JSON.stringify(GOOD));
  const none = new Map<string, string>();
  const env = new Map([["TOOLSMITH_MANIFEST", "env.json"]]);
  const cwd = deep;
  assertEquals(await locateManifest(undefined, { cwd, env: none }), usual);
  assertEquals(
    await locateManifest(undefined, { cwd, env }),
    join(deep, "env.json"),
  );
  assertEquals(
    await locateManifest("x.json", { cwd, env }),
    join(deep, "x.json"),
  );
  const empty = new Map([["TOOLSMITH_MANIFEST", ""]]);
  assertEquals(await locateManifest(undefined, { cwd, env: empty }), usual);
  const { workspace } = await loadManifest(undefined, { cwd, env: none });
  assertEquals(workspace, dir.path);
});

Deno.test("locateManifest() throws for an inaccessible manifest instead of using one from a parent directory", async () => {
  await using dir = await temporaryDir();
  const cwd = join(dir.path, "deep");
  const hidden = join(cwd, ".toolsmith", "tools.json");
  for (const at of [dir.path, cwd]) {
    await Deno.mkdir(join(at, ".toolsmith"), { recursive: true });
    await Deno.writeTextFile(join(at, ".toolsmith", "tools.json"), "{}");
  }
  const stat = Deno.stat;
  using _denied = replaceMethod(Deno, {
    stat: (path: string | URL) =>
      path === hidden
        ? Promise.reject(new Deno.errors.PermissionDenied("denied"))
        : stat(path),
  });
  const { message } = await expectFailure(
    "file_unreadable",
    () => locateManifest(undefined, { cwd, env: new Map() }),
  );
  assertStringIncludes(message, hidden);
});

Deno.test("loadManifest() reports a missing manifest with its path and a hint", async () => {
  await using dir = await temporaryDir();
  const options = { cwd: dir.path, env: new Map<string, string>() };
  const error = await expectFailure(
    "manifest_not_found",
    () => loadManifest("none.json", options),
  );
  assertStringIncludes(error.message, join(dir.path, "none.json"));
  assertStringIncludes(error.hint!, "toolsmith init");
  const usual = await expectFailure(
    "manifest_not_found",
    () => loadManifest(undefined, options),
  );
  assertStringIncludes(usual.message, ".toolsmith/tools.json");
});

Deno.test("loadManifest() reports an unreadable manifest with its path", async () => {
  await using dir = await temporaryDir();
  const options = { cwd: dir.path };
  const error = await expectFailure(
    "file_unreadable",
    () => loadManifest(".", options),
  );
  assertStringIncludes(error.message, dir.path);
});

Deno.test("toShortJson() truncates a value of more than 60 characters", () => {
  assertEquals(toShortJson("x".repeat(58)), `"${"x".repeat(58)}"`);
  assertEquals(toShortJson("x".repeat(59)), `"${"x".repeat(56)}…`);
});
