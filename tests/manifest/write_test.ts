import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  assertUpdatable,
  setImage,
  writeManifest,
} from "../../lib/manifest/write.ts";
import {
  consumerManifest,
  formatManifest,
  imageNameOf,
} from "../../lib/manifest/format.ts";
import { failure } from "../support/failure.ts";
import { namesIn } from "../support/directory.ts";

const IMAGE = {
  name: "demo",
  source: "oci://ghcr.io/owner/demo:2.0",
  sha256: "b".repeat(64),
};

/** A manifest as a person keeps it: own order, own blanks, own line ends. */
const KEPT = `{
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

async function inDir(body: (dir: string) => Promise<void>) {
  const dir = await Deno.makeTempDir();
  try {
    await body(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

Deno.test("a manifest made for a consumer has the guide's fields in its order", () => {
  const written = formatManifest(consumerManifest(IMAGE));
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

Deno.test("an update changes the source and the digest, and no other byte", () => {
  const expected = KEPT
    .replace("a".repeat(64), "b".repeat(64))
    .replace("oci://ghcr.io/owner/d\\u0065mo:1.0", IMAGE.source);
  assertEquals(setImage(KEPT, "tools.json", IMAGE), expected);
  const renamed = setImage(KEPT, "tools.json", IMAGE, { rename: true });
  assertEquals(renamed, expected.replace('"mine {qcow2},"', '"demo"'));
});

Deno.test("fields of the same name elsewhere are left alone", () => {
  const text = JSON.stringify({
    tools: { qcow2: "/bin/qcow2", image: { path: "/bin/image" } },
    operations: ["qcow2", "image"],
    image: { name: "x", qcow2: "old.qcow2", qcow2_sha256: "" },
  });
  const changed = JSON.parse(setImage(text, "tools.json", IMAGE));
  assertEquals(changed, {
    tools: { qcow2: "/bin/qcow2", image: { path: "/bin/image" } },
    operations: ["qcow2", "image"],
    image: { name: "x", qcow2: IMAGE.source, qcow2_sha256: IMAGE.sha256 },
  });
});

Deno.test("a placeholder for the digest is mended", () => {
  const text = KEPT.replace("a".repeat(64), "<SHA256 of the QCOW2 file>");
  const changed = JSON.parse(setImage(text, "tools.json", IMAGE));
  assertEquals(changed.image.qcow2_sha256, IMAGE.sha256);
});

Deno.test("a file that is no manifest is refused, and stays as it is", async () => {
  await inDir(async (dir) => {
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

Deno.test("a manifest is made with its directory, updated, and left alone if right", async () => {
  await inDir(async (dir) => {
    const path = join(dir, "new", ".toolsmith", "tools.json");
    assertEquals(await writeManifest(path, IMAGE), "created");
    const text = await Deno.readTextFile(path);
    assertEquals(text, formatManifest(consumerManifest(IMAGE)));
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
  name: "mode and symbolic link of a manifest survive an update",
  ignore: Deno.build.os === "windows",
  async fn() {
    await inDir(async (dir) => {
      const path = join(dir, "real.json");
      const linked = join(dir, "tools.json");
      await Deno.writeTextFile(path, KEPT);
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
  name: "an update keeps the mode whatever the umask, a new one heeds it",
  ignore: Deno.build.os === "windows",
  async fn() {
    const umask = Deno.umask(0o027);
    try {
      await inDir(async (dir) => {
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

Deno.test("what cannot be updated is known before anything is written", async () => {
  await inDir(async (dir) => {
    const path = join(dir, "tools.json");
    assertEquals(await assertUpdatable(path), undefined);
    assertEquals(await namesIn(dir), []);
    const rename = { rename: true };
    for (const text of [KEPT, KEPT.replace("a".repeat(64), "TODO")]) {
      await Deno.writeTextFile(path, text);
      assertEquals(await assertUpdatable(path), "mine {qcow2},");
      // A name that is to be changed will not be kept.
      assertEquals(await assertUpdatable(path, rename), undefined);
      assertEquals(await Deno.readTextFile(path), text);
    }
    const unnamed = KEPT.replace("mine {qcow2},", "..");
    await Deno.writeTextFile(path, unnamed);
    await failure("manifest_invalid", () => assertUpdatable(path));
    assertEquals(await assertUpdatable(path, rename), undefined);
  });
});

Deno.test("what the system refuses is told with the manifest's path", async () => {
  await inDir(async (dir) => {
    const path = join(dir, "tools.json");
    await Deno.mkdir(path);
    const works = [
      () => writeManifest(path, IMAGE),
      () => assertUpdatable(path),
    ];
    for (const work of works) {
      const { message, hint, cause } = await failure("file_unreadable", work);
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

Deno.test("a name that cannot be a directory is refused", () => {
  for (const name of ["", ".", "../x", "a/b", ".hidden"]) {
    const error = assertThrows(
      () => consumerManifest({ ...IMAGE, name }),
      ToolsmithError,
    );
    assertEquals(error.code, "usage");
  }
});

Deno.test("the default name is the last part of the repository or file", () => {
  assertEquals(
    imageNameOf("owner/fountainkit-toolsmith"),
    "fountainkit-toolsmith",
  );
  assertEquals(imageNameOf("dist/image.qcow2"), "image");
  assertEquals(imageNameOf("n".repeat(129)), "n".repeat(128));
  assertEquals(imageNameOf("/a/my image: v1.qcow2"), "my-image-v1");
  assertEquals(imageNameOf("..qcow2"), "image");
});
