import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import { runProcess } from "../../lib/system/process.ts";
import { readQcow2Header } from "../../lib/image/qcow2_header.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { buildTestGuest, env, needsGuest } from "../support/guest.ts";

async function buildGuest(...args: string[]) {
  const script = `${PROJECT_ROOT}/scripts/guest/build.ts`;
  return await runProcess(Deno.execPath(), {
    args: await withImportMap(["run", "-A", script, ...args]),
  });
}

Deno.test({
  name: "build.ts --add puts tools into the guest image",
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

    // On a busy host a guest may print nothing for minutes.
    await using vm = await boot({ image: out, env, bootTimeoutMs: 86_400_000 });
    const { stdout } = await vm.exec("my-tool", { args: ["it"] });
    assertEquals(stdout, "my tool got it\n");
    // build.ts also copies a program's shared libraries.
    const script = "printf %s ${BASH_VERSINFO[0]}";
    const bash = await vm.exec("/opt/bash", { args: ["-c", script] });
    assert(/^\d+$/.test(bash.stdout), bash.stderr);
  },
});

Deno.test({
  name: "build.ts builds a small, self-contained guest image once",
  ...needsGuest,
  async fn() {
    const image = await buildTestGuest();
    const before = (await Deno.stat(image)).mtime;
    const again = await buildGuest();
    assertEquals([again.code, again.stdout], [0, `${image}\n`], again.stderr);
    assertEquals((await Deno.stat(image)).mtime, before);
    const info = await readQcow2Header(image);
    assert(info.fileSize < 20 * 2 ** 20, `${info.fileSize} bytes`);
    assertEquals(info.backingFile, undefined);
  },
});

Deno.test("build.ts prints its usage for wrong arguments", async () => {
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
