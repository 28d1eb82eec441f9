import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import { run } from "../../lib/system/process.ts";
import { inspectQcow2 } from "../../lib/image/qcow2.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { env, guest, needsGuest } from "../support/guest.ts";

async function buildGuest(...args: string[]) {
  const script = `${ROOT}/scripts/guest/build.ts`;
  return await run(Deno.execPath(), {
    args: await denoArgs(["run", "-A", script, ...args]),
  });
}

Deno.test({
  name: "a guest of one's own holds the tools that were added to it",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const tool = join(dir.path, "my-tool");
    await Deno.writeTextFile(tool, '#!/bin/sh\necho "my tool got $1"\n');
    await Deno.chmod(tool, 0o755);
    const out = join(dir.path, "dist", "image.qcow2");
    const shell = "/bin/bash:/opt/bash";
    const built = await buildGuest("--add", tool, "--add", shell, out);
    assertEquals([built.code, built.stdout], [0, `${out}\n`], built.stderr);

    await using vm = await boot({ image: out, env });
    const { stdout } = await vm.exec("my-tool", { args: ["it"] });
    assertEquals(stdout, "my tool got it\n");
    // A program comes with the libraries that it is linked with.
    const script = "printf %s ${BASH_VERSINFO[0]}";
    const bash = await vm.exec("/opt/bash", { args: ["-c", script] });
    assert(/^\d+$/.test(bash.stdout), bash.stderr);
  },
});

Deno.test({
  name: "a guest is built once, small, and depends on no other file",
  ...needsGuest,
  async fn() {
    const image = await guest();
    const before = (await Deno.stat(image)).mtime;
    const again = await buildGuest();
    assertEquals([again.code, again.stdout], [0, `${image}\n`], again.stderr);
    assertEquals((await Deno.stat(image)).mtime, before);
    const info = await inspectQcow2(image);
    assert(info.fileSize < 20 * 2 ** 20, `${info.fileSize} bytes`);
    assertEquals(info.backingFile, undefined);
  },
});

Deno.test("a wrong use of the guest builder says what is right", async () => {
  for (
    const args of [["--nope"], ["a", "b"], ["--add", "x:relative"], [
      "--add",
      "/no/such/file",
    ]]
  ) {
    const { code, stdout, stderr } = await buildGuest(...args);
    assertEquals([code, stdout], [2, ""]);
    assert(stderr.includes("build.ts [--add FILE"), stderr);
  }
});
