import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import type { ErrorCode } from "../../lib/errors.ts";
import { show } from "../../lib/manifest/_json_fields.ts";
import {
  isImageName,
  loadManifest,
  locateManifest,
  parseManifest,
} from "../../lib/manifest/manifest.ts";
import { failure } from "../support/failure.ts";
import { replace } from "../support/replace.ts";
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

Deno.test("the guide's manifest is read", () => {
  assertEquals(parse(GOOD), {
    path: FILE,
    root: "/srv/project",
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

Deno.test("tarball, tools and operations are kept", () => {
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

Deno.test("a field that stands there twice is an error that names it", async () => {
  const [image, tools] = [JSON.stringify(IMAGE), '{"a": "/a"}'];
  const repeated: [string, string][] = [
    [`{"image": ${image}, "image": ${image}}`, "image"],
    [`{"image": ${image}, "operations": [], "operations": []}`, "operations"],
    // Escaped, it is the same.
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
    const error = await failure(
      "manifest_invalid",
      () => parseManifest(text, FILE),
    );
    assertEquals(error.message, `${FILE}: ${field}: stands there twice`);
  }
  // The same key in two objects, in a text, or in what is another program's.
  const fine =
    `{"image": ${image}, "x-a": [{"a": 1}, {"a": 2}, {"b": 1, "b": 2}],
    "operations": ["a\\"", "operations:", "{"]}`;
  assertEquals(parseManifest(fine, FILE).operations.length, 3);
});

Deno.test("fields of other programs are kept, and misspelt ones are errors", async () => {
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
    await failure("manifest_invalid", () => parse(wrong));
  }
});

Deno.test("a manifest that is nested without end is refused", async () => {
  const deep = "[".repeat(100_000) + "]".repeat(100_000);
  const text = `{"image": ${deep}}`;
  const error = await failure(
    "manifest_invalid",
    () => parseManifest(text, FILE),
  );
  assertStringIncludes(error.message, "nested too deeply");
});

Deno.test("tools and operations may be left out", () => {
  const { tools, operations } = parse({ image: IMAGE });
  assertEquals([tools, operations], [{}, []]);
});

Deno.test("a tool may have any name, also one that objects have", () => {
  const text = `{"image":${
    JSON.stringify(IMAGE)
  },"tools":{"__proto__":"/p","toString":"/t"}}`;
  const { tools } = parseManifest(text, FILE);
  assertEquals(Object.keys(tools), ["__proto__", "toString"]);
  assertEquals(Object.getPrototypeOf(tools), Object.prototype);
});

Deno.test("paths start from the manifest's directory, whatever the working directory", () => {
  const { image } = parse({ image: { ...IMAGE, qcow2: "../dist/a.qcow2" } });
  assertEquals(image.source, {
    kind: "file",
    path: "/srv/project/dist/a.qcow2",
  });
});

/** What is wrong: its code, its field, a part of the message, of the hint. */
const WRONG: [unknown, ErrorCode, string, string, string][] = [
  [[], "manifest_invalid", "", "[] is not an object", "docs/consuming.md"],
  [{}, "manifest_invalid", "image", "missing", "docs/consuming.md"],
  [{ image: 7 }, "manifest_invalid", "image", "7 is not an object", "shape"],
  [{ ...GOOD, tool: {} }, "manifest_invalid", "tool", "no such field", "tools"],
  [
    { ...GOOD, $schema: 1 },
    "manifest_invalid",
    "$schema",
    "not a string",
    '""',
  ],
  [
    image({ qcow: "" }),
    "manifest_invalid",
    "image.qcow",
    "no such field",
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
    '"../x" is not a plain directory name',
    "letters",
  ],
  [
    image({ name: "a/b" }),
    "manifest_invalid",
    "image.name",
    '"a/b" is not a plain directory name',
    "letters",
  ],
  [
    image({ name: "." }),
    "manifest_invalid",
    "image.name",
    '"." is not a plain directory name',
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
    "names no repository",
    "REGISTRY/OWNER",
  ],
  [
    image({ qcow2: "http://a/b" }),
    "reference_invalid",
    "image.qcow2",
    "not a source",
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
    "missing, while image.tarball is given",
    "both",
  ],
  [
    image({ sha256: DIGEST }),
    "manifest_invalid",
    "image.tarball",
    "missing, while image.sha256 is given",
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
    "no such field",
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
    '"" is not a name',
    "",
  ],
];

function image(fields: Record<string, unknown>) {
  return { image: { ...IMAGE, ...fields } };
}

for (const [manifest, code, field, why, hint] of WRONG) {
  Deno.test(`${field || "the whole"}: ${why}`, async () => {
    const error = await failure(code, () => parse(manifest));
    const where = field ? `${FILE}: ${field}: ` : `${FILE}: `;
    assert(error.message.startsWith(where), error.message);
    assertStringIncludes(error.message, why);
    assertStringIncludes(error.hint!, hint);
  });
}

Deno.test("a catalog is recognised and explained", async () => {
  const catalog = { toolsmith: { images: [IMAGE] }, other: 1 };
  const error = await failure("manifest_invalid", () => parse(catalog));
  assertStringIncludes(error.message, `${FILE}: toolsmith.images: `);
  assertStringIncludes(error.message, "catalog");
  assertStringIncludes(error.hint!, "toolsmith init");
});

Deno.test("a huge value is not repeated whole", async () => {
  const tools = { gcc: "x".repeat(100_000) };
  const error = await failure(
    "manifest_invalid",
    () => parse({ ...GOOD, tools }),
  );
  assert(error.message.length < 300);
});

/** Bad syntax, and the line and column of it. */
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
  Deno.test(`bad syntax is reported by line and column: ${JSON.stringify(text)}`, async () => {
    const error = await failure(
      "manifest_invalid",
      () => parseManifest(text, FILE),
    );
    assert(
      error.message.startsWith(`${FILE}:${at}: not JSON: `),
      error.message,
    );
    assertStringIncludes(error.hint!, "fix the syntax");
  });
}

Deno.test("a byte order mark is fine", () => {
  assertEquals(
    parseManifest(`\uFEFF${JSON.stringify(GOOD)}`, FILE),
    parse(GOOD),
  );
});

Deno.test("a name is a directory's on every system, or refused", () => {
  for (const name of ["a", "A-1.2_3", "größe", "a b", "-a", "n".repeat(128)]) {
    assert(isImageName(name), name);
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
  ) assert(!isImageName(name), JSON.stringify(name));
});

Deno.test("the manifest is the named one, else the variable's, else the nearest", async () => {
  await using dir = await temporaryDir();
  const deep = join(dir.path, "a", "b");
  await Deno.mkdir(deep, { recursive: true });
  await Deno.mkdir(join(dir.path, ".toolsmith"));
  // A directory of that name is passed by.
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
  const { root } = await loadManifest(undefined, { cwd, env: none });
  assertEquals(root, dir.path);
});

Deno.test("locateManifest() takes none from above a manifest that may not be looked at", async () => {
  await using dir = await temporaryDir();
  const cwd = join(dir.path, "deep");
  const hidden = join(cwd, ".toolsmith", "tools.json");
  for (const at of [dir.path, cwd]) {
    await Deno.mkdir(join(at, ".toolsmith"), { recursive: true });
    await Deno.writeTextFile(join(at, ".toolsmith", "tools.json"), "{}");
  }
  const stat = Deno.stat;
  using _denied = replace(Deno, {
    stat: (path: string | URL) =>
      path === hidden
        ? Promise.reject(new Deno.errors.PermissionDenied("denied"))
        : stat(path),
  });
  const { message } = await failure(
    "file_unreadable",
    () => locateManifest(undefined, { cwd, env: new Map() }),
  );
  assertStringIncludes(message, hidden);
});

Deno.test("a manifest that is not there is named, with what to do", async () => {
  await using dir = await temporaryDir();
  const options = { cwd: dir.path, env: new Map<string, string>() };
  const error = await failure(
    "manifest_not_found",
    () => loadManifest("none.json", options),
  );
  assertStringIncludes(error.message, join(dir.path, "none.json"));
  assertStringIncludes(error.hint!, "toolsmith init");
  const usual = await failure(
    "manifest_not_found",
    () => loadManifest(undefined, options),
  );
  assertStringIncludes(usual.message, ".toolsmith/tools.json");
});

Deno.test("a manifest that cannot be read is named", async () => {
  await using dir = await temporaryDir();
  const options = { cwd: dir.path };
  const error = await failure(
    "file_unreadable",
    () => loadManifest(".", options),
  );
  assertStringIncludes(error.message, dir.path);
});

Deno.test("a value of more than 60 characters is cut in messages", () => {
  assertEquals(show("x".repeat(58)), `"${"x".repeat(58)}"`);
  assertEquals(show("x".repeat(59)), `"${"x".repeat(56)}…`);
});
