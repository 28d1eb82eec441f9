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
  artifactFiles,
  imageTitle,
  parseExtra,
  pushDir,
} from "../../lib/publish/layers.ts";
import { run, spawn } from "../../lib/system/process.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { replace } from "../support/replace.ts";

Deno.test("a pair of path and media type is read from its last colon", () => {
  assertEquals(parseExtra("a b:c/d.json:application/vnd.x+json"), {
    path: "a b:c/d.json",
    mediaType: "application/vnd.x+json",
  });
  for (const text of ["", "a", "a:", ":text/plain", "a:text", "a:b c/d"]) {
    const error = assertThrows(() => parseExtra(text), ToolsmithError);
    assertEquals(error.code, "usage");
    assertStringIncludes(error.message, `"${text}"`);
  }
  const hints = [["", "PATH"], ["a b", "a b"], ["a:x y", "a"]];
  for (const [text, path] of hints) {
    const { hint } = assertThrows(() => parseExtra(text), ToolsmithError);
    assertEquals(hint, `write ${path}:application/json, for example`);
  }
});

Deno.test("an image gets a title that every system can have, and consumers find", () => {
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
    assertEquals(imageTitle(path), title);
  }
});

Deno.test("extra files keep their names, if no two of them are one somewhere", () => {
  const mediaType = "a/b";
  const image = { path: "/x/i.qcow2", title: "i.qcow2", mediaType };
  const extra = (path: string) => ({ path, mediaType });
  assertEquals(artifactFiles(image, [extra("/y/a.json"), extra("b")]), [
    image,
    { path: "/y/a.json", mediaType, title: "a.json" },
    { path: "b", mediaType, title: "b" },
  ]);
  const refused: [string[], string][] = [
    [["/y/a:b"], "Cannot publish extra file /y/a:b: consumers refuse its name"],
    [["/y/I.qcow2"], "Cannot publish both /x/i.qcow2 and /y/I.qcow2"],
    [["/y/a", "/z/A"], "Cannot publish both /y/a and /z/A"],
  ];
  for (const [paths, words] of refused) {
    const error = assertThrows(
      () => artifactFiles(image, paths.map(extra)),
      ToolsmithError,
      words,
    );
    assertEquals(error.code, "usage");
    assertStringIncludes(error.hint!, "rename");
  }
});

Deno.test("what a killed publish left in the temporary directory is swept, what another fills is not", async () => {
  await using dir = await temporaryDir();
  const tmp = join(dir.path, "tmp");
  // Killed before it was locked; what holds more is somebody else's.
  await Deno.mkdir(join(tmp, "toolsmith-publish-made"), { recursive: true });
  await Deno.mkdir(join(tmp, "toolsmith-publish-other", "files"), {
    recursive: true,
  });
  const image = join(dir.path, "i.qcow2");
  await Deno.writeTextFile(image, "image");
  const file = { path: image, title: "image.qcow2", mediaType: "a/b" };
  const script = `
    import { pushDir } from "${ROOT}/lib/publish/layers.ts";
    await using dir = await pushDir([${JSON.stringify(file)}]);
    console.log(dir.cwd);
    if (Deno.args[0] === "wait") await new Promise((r) => setTimeout(r, 60_000));
  `;
  const path = join(dir.path, "push.ts");
  await Deno.writeTextFile(path, script);
  const env = { TMPDIR: tmp, TEMP: tmp, TMP: tmp };
  const start = async () => {
    const said = Promise.withResolvers<string>();
    const child = spawn(Deno.execPath(), {
      args: await denoArgs(["run", "-A", path, "wait"]),
      env,
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
    // One that pulls the image back leaves the same under another name.
    await Deno.rename(dirname(cwd), join(dir.path, `toolsmith-${name}-killed`));
  }
  for (const name of ["publish", "verify"]) {
    const left = `toolsmith-${name}-killed`;
    await Deno.rename(join(dir.path, left), join(tmp, left));
  }
  const alive = await start();
  const { code, stderr } = await run(Deno.execPath(), {
    args: await denoArgs(["run", "-A", path]),
    env,
  });
  assertEquals(code, 0, stderr);
  const left = Array.from(Deno.readDirSync(tmp), ({ name }) => join(tmp, name));
  const expected = [dirname(alive.cwd), join(tmp, "toolsmith-publish-other")];
  assertEquals(left.sort(), expected.sort());
  assert(await Deno.stat(join(alive.cwd, "image.qcow2")));
  await alive.child.stop();
});

Deno.test("files with their own names in one directory are pushed from there", async () => {
  const file = { path: "/a/i.qcow2", title: "i.qcow2", mediaType: "a/b" };
  await using dir = await pushDir([file]);
  assertEquals(dir.cwd, "/a");
  assertEquals(dir.files, [{ path: "./i.qcow2", mediaType: "a/b" }]);
});

Deno.test("files of other directories are linked into a new one, which goes with the push", async () => {
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
  using _system = replace(Deno, {
    async makeTempDir(options: Deno.MakeTempOptions) {
      made.push(await makeTempDir(options));
      return made.at(-1);
    },
  });
  {
    await using pushed = await pushDir(files);
    assertEquals(dirname(pushed.cwd), made[0]);
    assertEquals(pushed.files.map(({ path }) => path), ["./i.qcow2", "./n"]);
    for (const [at, name] of ["i.qcow2", "n"].entries()) {
      const link = join(pushed.cwd, name);
      assertEquals(await Deno.realPath(link), files[at].path);
    }
  }
  // What cannot be linked leaves nothing either.
  const twice = [files[0], { ...files[1], title: "i.qcow2" }];
  await assertRejects(() => pushDir(twice), Deno.errors.AlreadyExists);
  assertEquals(made.length, 2);
  for (const path of made) {
    await assertRejects(() => Deno.stat(path), Deno.errors.NotFound);
  }
});
