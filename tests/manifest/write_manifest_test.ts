import {
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { join } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  assertManifestUpdatable,
  manifestExists,
  replaceImageFields,
  writeManifest,
} from "../../lib/manifest/write_manifest.ts";
import {
  createManifestJson,
  formatManifestJson,
  imageNameFromPath,
} from "../../lib/manifest/manifest_json.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { namesIn } from "../support/directory.ts";

const IMAGE = {
  name: "demo",
  source: "oci://ghcr.io/owner/demo:2.0",
  sha256: "b".repeat(64),
};

/** A hand-written manifest: unusual order, blanks and line ends. */
const HANDWRITTEN = `{
\t"$schema": "https://example.com/tools.schema.json",\r
\t"operations": [ "gcc", "ld" ],
\t"tools": { "gcc": "/usr/bin/gcc",   "10": "/bin/ten", "ld": {"path":"/bin/ld"} },
\t"image": {
\t\t"qcow2_sha256":"${"a".repeat(64)}"  ,
\t\t"qcow2" : "oci://ghcr.io/owner/d\\u0065mo:1.0",
\t\t"name": "mine {qcow2},",
\t\t"tarball": "", "sha256": ""
\t}
}`;

async function inTempDir(body: (dir: string) => Promise<void>) {
  const dir = await Deno.makeTempDir();
  try {
    await body(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

Deno.test("createManifestJson() writes the fields in the order of the guide", () => {
  const written = formatManifestJson(createManifestJson(IMAGE));
  assertEquals(
    written,
    `{
  "image": {
    "name": "demo",
    "tarball": "",
    "sha256": "",
    "qcow2": "oci://ghcr.io/owner/demo:2.0",
    "qcow2_sha256": "${"b".repeat(64)}"
  },
  "tools": {},
  "operations": []
}
`,
  );
});

Deno.test("replaceImageFields() changes source and digest, and no other byte", () => {
  const expected = HANDWRITTEN
    .replace("a".repeat(64), "b".repeat(64))
    .replace("oci://ghcr.io/owner/d\\u0065mo:1.0", IMAGE.source);
  assertEquals(replaceImageFields(HANDWRITTEN, "tools.json", IMAGE), expected);
  const renamed = replaceImageFields(HANDWRITTEN, "tools.json", IMAGE, {
    setName: true,
  });
  assertEquals(renamed, expected.replace('"mine {qcow2},"', '"demo"'));
});

Deno.test("replaceImageFields() leaves fields of the same name outside of image unchanged", () => {
  const text = JSON.stringify({
    tools: { qcow2: "/bin/qcow2", image: { path: "/bin/image" } },
    operations: ["qcow2", "image"],
    image: { name: "x", qcow2: "old.qcow2", qcow2_sha256: "" },
  });
  const changed = JSON.parse(replaceImageFields(text, "tools.json", IMAGE));
  assertEquals(changed, {
    tools: { qcow2: "/bin/qcow2", image: { path: "/bin/image" } },
    operations: ["qcow2", "image"],
    image: { name: "x", qcow2: IMAGE.source, qcow2_sha256: IMAGE.sha256 },
  });
});

Deno.test("replaceImageFields() replaces a placeholder digest", () => {
  const text = HANDWRITTEN.replace(
    "a".repeat(64),
    "<SHA256 of the QCOW2 file>",
  );
  const changed = JSON.parse(replaceImageFields(text, "tools.json", IMAGE));
  assertEquals(changed.image.qcow2_sha256, IMAGE.sha256);
});

Deno.test("writeManifest() rejects a file that is not a manifest, and leaves the file unchanged", async () => {
  await inTempDir(async (dir) => {
    const path = join(dir, "tools.json");
    const wrong = [
      "",
      "[]",
      '{"image": {"name": "x"',
      '{"image": {"name": "../x", "qcow2": "", "qcow2_sha256": ""}}',
      '{"image": {"name": "x", "qcow2": ""}}',
      '{"image": {"name": "x", "qcow2": 1, "qcow2_sha256": ""}}',
      '{"image": {"name": "x", "qcow2": "", "qcow2_sha256": ""}, "tool": {}}',
      '{"toolsmith": {"images": [{"name": "x"}]}}',
    ];
    for (const text of wrong) {
      await Deno.writeTextFile(path, text);
      const error = await assertRejects(
        () => writeManifest(path, IMAGE),
        ToolsmithError,
      );
      assertEquals(error.code, "manifest_invalid", text);
      assertEquals(await Deno.readTextFile(path), text);
    }
    assertEquals(await namesIn(dir), ["tools.json"]);
  });
});

Deno.test("writeManifest() creates a manifest and its directory, updates an outdated manifest, and leaves a current one unchanged", async () => {
  await inTempDir(async (dir) => {
    const path = join(dir, "new", ".toolsmith", "tools.json");
    assertEquals(await writeManifest(path, IMAGE), "created");
    const text = await Deno.readTextFile(path);
    assertEquals(text, formatManifestJson(createManifestJson(IMAGE)));
    const { mtime } = await Deno.stat(path);
    assertEquals(await writeManifest(path, IMAGE), "unchanged");
    assertEquals((await Deno.stat(path)).mtime, mtime);
    const next = { ...IMAGE, sha256: "c".repeat(64) };
    assertEquals(await writeManifest(path, next), "updated");
    assertEquals(
      await Deno.readTextFile(path),
      text.replace(IMAGE.sha256, next.sha256),
    );
    assertEquals(await namesIn(join(dir, "new", ".toolsmith")), [
      "tools.json",
    ]);
  });
});

Deno.test({
  name:
    "writeManifest() preserves the file mode and the symbolic link of a manifest",
  ignore: Deno.build.os === "windows",
  async fn() {
    await inTempDir(async (dir) => {
      const path = join(dir, "real.json");
      const linked = join(dir, "tools.json");
      await Deno.writeTextFile(path, HANDWRITTEN);
      await Deno.chmod(path, 0o640);
      await Deno.symlink(path, linked);
      assertEquals(await writeManifest(linked, IMAGE), "updated");
      assertEquals((await Deno.lstat(linked)).isSymlink, true);
      const { mode } = await Deno.stat(path);
      assertEquals(mode! & 0o777, 0o640);
      const changed = JSON.parse(await Deno.readTextFile(path));
      assertEquals(changed.image.qcow2, IMAGE.source);
    });
  },
});

Deno.test({
  name:
    "writeManifest() keeps an existing file mode regardless of the umask, and applies the umask to a new file",
  ignore: Deno.build.os === "windows",
  async fn() {
    const umask = Deno.umask(0o027);
    try {
      await inTempDir(async (dir) => {
        const path = join(dir, "tools.json");
        const modeOf = async () => (await Deno.stat(path)).mode! & 0o777;
        await writeManifest(path, IMAGE);
        assertEquals(await modeOf(), 0o640);
        await Deno.chmod(path, 0o666);
        await writeManifest(path, { ...IMAGE, sha256: "c".repeat(64) });
        assertEquals(await modeOf(), 0o666);
      });
    } finally {
      Deno.umask(umask);
    }
  },
});

Deno.test("assertManifestUpdatable() rejects an invalid manifest without writing anything", async () => {
  await inTempDir(async (dir) => {
    const path = join(dir, "tools.json");
    assertEquals(await assertManifestUpdatable(path), undefined);
    assertEquals(await namesIn(dir), []);
    const rename = { setName: true };
    for (
      const text of [HANDWRITTEN, HANDWRITTEN.replace("a".repeat(64), "TODO")]
    ) {
      await Deno.writeTextFile(path, text);
      assertEquals(
        (await assertManifestUpdatable(path))?.name,
        "mine {qcow2},",
      );
      const renamed = await assertManifestUpdatable(path, rename);
      assertEquals(renamed?.name, "any");
      assertEquals(await Deno.readTextFile(path), text);
    }
    const unnamed = HANDWRITTEN.replace("mine {qcow2},", "..");
    await Deno.writeTextFile(path, unnamed);
    await expectFailure(
      "manifest_invalid",
      () => assertManifestUpdatable(path),
    );
    const renamed = await assertManifestUpdatable(path, rename);
    assertEquals(renamed?.name, "any");
  });
});

Deno.test("writeManifest() and assertManifestUpdatable() report a system error with the manifest's path", async () => {
  await inTempDir(async (dir) => {
    const path = join(dir, "tools.json");
    await Deno.mkdir(path);
    const works = [
      () => writeManifest(path, IMAGE),
      () => assertManifestUpdatable(path),
    ];
    for (const work of works) {
      const { message, hint, cause } = await expectFailure(
        "file_unreadable",
        work,
      );
      const start = `Cannot write manifest ${path}: `;
      assertEquals(message.slice(0, start.length), start);
      assertEquals(
        hint,
        "name a file, not a directory",
      );
      assertEquals(cause instanceof Error, true);
    }
  });
});

Deno.test("createManifestJson() rejects an image name that is not a valid directory name", () => {
  for (const name of ["", ".", "../x", "a/b", ".hidden"]) {
    const error = assertThrows(
      () => createManifestJson({ ...IMAGE, name }),
      ToolsmithError,
    );
    assertEquals(error.code, "usage");
  }
});

Deno.test("imageNameFromPath() returns the last part of a repository or file path", () => {
  assertEquals(
    imageNameFromPath("owner/fountainkit-toolsmith"),
    "fountainkit-toolsmith",
  );
  assertEquals(imageNameFromPath("dist/image.qcow2"), "image");
  assertEquals(imageNameFromPath("n".repeat(129)), "n".repeat(128));
  assertEquals(imageNameFromPath("/a/my image: v1.qcow2"), "my-image-v1");
  assertEquals(imageNameFromPath("..qcow2"), "image");
});

Deno.test("replaceImageFields() adds a signature rule behind the digest, or replaces it", () => {
  const key = (letters: string) =>
    `-----BEGIN PUBLIC KEY-----\n${letters}\n-----END PUBLIC KEY-----`;
  const pin = {
    name: "vm",
    source: "oci://localhost/vm:1",
    sha256: "b".repeat(64),
  };
  const layouts: ((json: unknown) => string)[] = [
    (json) => JSON.stringify(json, null, 2),
    (json) => JSON.stringify(json, null, "\t").replaceAll("\n", "\r\n"),
    (json) => JSON.stringify(json),
  ];
  const image = { "x-note": { signature: "{" }, name: "vm", qcow2: "a.qcow2" };
  for (const layout of layouts) {
    const before = layout({
      image: { ...image, qcow2_sha256: "TODO", tarball: "" },
      "x-signature": { signature: {} },
    });
    const rules = [{ key: key("AAAA") }, {
      identity: "https://github.com/o/r/w.yml@refs/{a}",
      issuer: "https://issuer.example",
    }];
    let text = before;
    for (const signature of rules) {
      text = replaceImageFields(text, "tools.json", { ...pin, signature });
      const { qcow2, sha256 } = { qcow2: pin.source, sha256: pin.sha256 };
      assertEquals(JSON.parse(text), {
        image: {
          ...image,
          qcow2,
          qcow2_sha256: sha256,
          signature,
          tarball: "",
        },
        "x-signature": { signature: {} },
      });
    }
    assertEquals(replaceImageFields(text, "tools.json", pin), text);
  }
  const pretty = layouts[0]({ image: { ...image, qcow2_sha256: "" } });
  const signature = { key: key("AAAA") };
  const after = replaceImageFields(pretty, "tools.json", { ...pin, signature });
  assertEquals(after, layouts[0](JSON.parse(after)));
});

Deno.test({
  name:
    "writeManifest(), assertManifestUpdatable() and manifestExists() refuse a symbolic link in the workspace",
  ignore: Deno.build.os === "windows",
  fn: () =>
    inTempDir(async (dir) => {
      const target = join(dir, "target.json");
      await Deno.writeTextFile(target, HANDWRITTEN);
      const workspace = join(dir, "workspace", ".toolsmith");
      await Deno.mkdir(workspace, { recursive: true });
      const path = join(workspace, "tools.json");
      await Deno.symlink(target, path);
      for (
        const work of [
          () => writeManifest(path, IMAGE),
          () => assertManifestUpdatable(path),
          () => manifestExists(path),
        ]
      ) {
        const { message } = await expectFailure("file_unreadable", work);
        assertStringIncludes(message, `Cannot write manifest ${path}: `);
      }
      assertEquals(await Deno.readTextFile(target), HANDWRITTEN);
    }),
});
