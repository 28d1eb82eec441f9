import {
  assert,
  assertEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { dirname, join } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import { parseExtra, pushDir } from "../../lib/publish/layers.ts";
import { run, spawn } from "../../lib/system/process.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";

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
