import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { dirname, join } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  addExtraFiles,
  imageLayerTitle,
  parseExtraFile,
  preparePushDir,
} from "../../lib/publish/artifact_files.ts";
import { runProcess, spawnProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { replaceMethod } from "../support/replace_method.ts";

Deno.test("parseExtraFile() splits path and media type at the last colon", () => {
  assertEquals(parseExtraFile("a b:c/d.json:application/vnd.x+json"), {
    path: "a b:c/d.json",
    mediaType: "application/vnd.x+json",
  });
  for (const text of ["", "a", "a:", ":text/plain", "a:text", "a:b c/d"]) {
    const error = assertThrows(() => parseExtraFile(text), ToolsmithError);
    assertEquals(error.code, "usage");
    assertStringIncludes(error.message, `"${text}"`);
  }
  const hints = [["", "PATH"], ["a b", "a b"], ["a:x y", "a"]];
  for (const [text, path] of hints) {
    const { hint } = assertThrows(() => parseExtraFile(text), ToolsmithError);
    assertEquals(hint, `write ${path}:application/json, for example`);
  }
});

Deno.test("imageLayerTitle() returns a portable file name that ends in .qcow2", () => {
  const titles: [string, string][] = [
    ["/a/b/image.qcow2", "image.qcow2"],
    ["Image.QCOW2", "Image.QCOW2"],
    ["disk.img", "disk.img.qcow2"],
    ['a\\b:c*d?e"f<g>h|i\nj\tk.qcow2', "a-b-c-d-e-f-g-h-i-j-k.qcow2"],
    ["nul.qcow2", "image-nul.qcow2"],
    ["a".repeat(249), `${"a".repeat(249)}.qcow2`],
    ["a".repeat(250), "image.qcow2"],
  ];
  for (const [path, title] of titles) {
    assertEquals(imageLayerTitle(path), title);
  }
});

Deno.test("addExtraFiles() keeps the names of extra files and rejects names that collide on some file system", () => {
  const mediaType = "a/b";
  const image = { path: "/x/i.qcow2", title: "i.qcow2", mediaType };
  const extra = (path: string) => ({ path, mediaType });
  assertEquals(addExtraFiles(image, [extra("/y/a.json"), extra("b")]), [
    image,
    { path: "/y/a.json", mediaType, title: "a.json" },
    { path: "b", mediaType, title: "b" },
  ]);
  const refused: [string[], string][] = [
    [
      ["/y/a:b"],
      "Cannot publish extra file /y/a:b: its name is not valid on every system",
    ],
    [["/y/I.qcow2"], "Cannot publish both /x/i.qcow2 and /y/I.qcow2"],
    [["/y/a", "/z/A"], "Cannot publish both /y/a and /z/A"],
  ];
  for (const [paths, words] of refused) {
    const error = assertThrows(
      () => addExtraFiles(image, paths.map(extra)),
      ToolsmithError,
      words,
    );
    assertEquals(error.code, "usage");
    assertStringIncludes(error.hint!, "rename");
  }
});

Deno.test("makeLockedTemporaryDir() removes directories of a killed publish and keeps locked ones", async () => {
  await using dir = await temporaryDir();
  const tmp = join(dir.path, "tmp");
  // Killed before locking; a directory with other files is not ours.
  await Deno.mkdir(join(tmp, "toolsmith-publish-made"), { recursive: true });
  await Deno.mkdir(join(tmp, "toolsmith-publish-other", "other"), {
    recursive: true,
  });
  const image = join(dir.path, "i.qcow2");
  await Deno.writeTextFile(image, "image");
  const file = { path: image, title: "image.qcow2", mediaType: "a/b" };
  const script = `
    import { preparePushDir } from "${PROJECT_ROOT}/lib/publish/artifact_files.ts";
    await using undo = new AsyncDisposableStack();
    const dir = await preparePushDir([${JSON.stringify(file)}], undo);
    console.log(dir.cwd);
    if (Deno.args[0] === "wait") await Deno.stdin.read(new Uint8Array(1));
  `;
  const path = join(dir.path, "push.ts");
  await Deno.writeTextFile(path, script);
  const env = { TMPDIR: tmp, TEMP: tmp, TMP: tmp };
  const start = async () => {
    const said = Promise.withResolvers<string>();
    const child = spawnProcess(Deno.execPath(), {
      args: await withImportMap(["run", "-A", path, "wait"]),
      env,
      input: "held",
      stdout: (chunk) => said.resolve(new TextDecoder().decode(chunk).trim()),
    });
    return { child, cwd: await said.promise };
  };
  for (const name of ["publish", "verify"]) {
    const { child, cwd } = await start();
    Deno.kill(child.pid, "SIGKILL");
    await child.ended;
    const text = await Deno.readTextFile(join(cwd, "image.qcow2"));
    assertEquals(text, "image");
    // A publish that verifies by a pull uses another name.
    await Deno.rename(dirname(cwd), join(dir.path, `toolsmith-${name}-killed`));
  }
  for (const name of ["publish", "verify"]) {
    const left = `toolsmith-${name}-killed`;
    await Deno.rename(join(dir.path, left), join(tmp, left));
  }
  const alive = await start();
  const { code, stderr } = await runProcess(Deno.execPath(), {
    args: await withImportMap(["run", "-A", path]),
    env,
  });
  assertEquals(code, 0, stderr);
  const left = Array.from(Deno.readDirSync(tmp), ({ name }) => join(tmp, name));
  const expected = [dirname(alive.cwd), join(tmp, "toolsmith-publish-other")];
  assertEquals(left.sort(), expected.sort());
  assert(await Deno.stat(join(alive.cwd, "image.qcow2")));
  await alive.child.stop();
});

Deno.test("preparePushDir() uses the files' own directory when their names equal their titles", async () => {
  const file = { path: "/a/i.qcow2", title: "i.qcow2", mediaType: "a/b" };
  await using undo = new AsyncDisposableStack();
  const dir = await preparePushDir([file], undo);
  assertEquals(dir.cwd, "/a");
  assertEquals(dir.files, [{ path: "./i.qcow2", mediaType: "a/b" }]);
});

Deno.test("preparePushDir() links files of several directories into a temporary one, removed afterwards", async () => {
  await using dir = await temporaryDir();
  const file = async (name: string, title: string) => {
    const path = join(dir.path, name);
    await Deno.mkdir(dirname(path), { recursive: true });
    await Deno.writeTextFile(path, name);
    return { path, title, mediaType: "a/b" };
  };
  const files = [await file("x/i.qcow2", "i.qcow2"), await file("y/n", "n")];
  const made: string[] = [];
  const { makeTempDir } = Deno;
  using _system = replaceMethod(Deno, {
    // Elsewhere, another publish may remove a directory before it is locked.
    async makeTempDir(options: Deno.MakeTempOptions) {
      made.push(await makeTempDir({ ...options, dir: dir.path }));
      return made.at(-1);
    },
  });
  {
    await using undo = new AsyncDisposableStack();
    const pushed = await preparePushDir(files, undo);
    assertEquals(dirname(pushed.cwd), made[0]);
    assertEquals(pushed.files.map(({ path }) => path), ["./i.qcow2", "./n"]);
    for (const [at, name] of ["i.qcow2", "n"].entries()) {
      const link = join(pushed.cwd, name);
      assertEquals(await Deno.realPath(link), files[at].path);
    }
  }
  // A failed link leaves nothing behind.
  const twice = [files[0], { ...files[1], title: "i.qcow2" }];
  await assertRejects(async () => {
    await using undo = new AsyncDisposableStack();
    await preparePushDir(twice, undo);
  }, Deno.errors.AlreadyExists);
  assertEquals(made.length, 2);
  for (const path of made) {
    await assertRejects(() => Deno.stat(path), Deno.errors.NotFound);
  }
});
