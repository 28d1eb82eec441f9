import { assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { boot } from "../../lib/vm/boot.ts";
import { buildGuest } from "../../scripts/guest/build.ts";
import { temporaryDir } from "../support/directory.ts";
import { env, needsGuest } from "../support/guest.ts";

const GIT = "/usr/bin/git";
const hasGit = await Deno.stat(GIT).then(() => true, () => false);

/** Makes a repository that belongs to another user than the guest's root. */
async function repository(path: string) {
  const made = await runProcess(GIT, {
    args: ["init", "-q", "-b", "main", path],
  });
  assertEquals(made.code, 0, made.stderr);
  await Deno.writeTextFile(join(path, "new"), "");
  if (Deno.uid() === 0) {
    await runProcess("chown", { args: ["-R", "54321", path] });
  }
}

Deno.test({
  name:
    "git works in the workspace, in a nested repository and in an export without configuration",
  ignore: needsGuest.ignore || !hasGit,
  async fn() {
    await using dir = await temporaryDir();
    const [workspace, out] = ["work", "out"].map((it) => join(dir.path, it));
    const inner = join(workspace, "vendor", "inner");
    for (const path of [workspace, inner, out]) await repository(path);
    const image = await buildGuest({ add: [{ source: GIT, target: GIT }] });
    await using vm = await boot({
      ...{ image, env, workspace, exports: [{ path: out }] },
    });
    const status = ["status", "--short"];
    for (const hostCwd of [workspace, inner, out]) {
      const { code, stdout, stderr } = await vm.exec("git", {
        args: status,
        hostCwd,
      });
      assertEquals([code, stderr], [0, ""]);
      assertStringIncludes(stdout, "?? new\n");
    }
    // The caller's git configuration stays in effect.
    const { stdout } = await vm.exec("git", {
      args: ["config", "user.name"],
      env: {
        GIT_CONFIG_COUNT: "1",
        GIT_CONFIG_KEY_0: "user.name",
        GIT_CONFIG_VALUE_0: "Somebody",
      },
    });
    assertEquals(stdout, "Somebody\n");
  },
});
