import { assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { guestCwdAndEnv } from "../../lib/vm/_make_vm.ts";
import { temporaryDir } from "../support/directory.ts";

/** Runs the host's git without any configuration files. */
function git(args: string[], env: Record<string, string> = {}) {
  return runProcess("git", {
    args,
    env: { ...env, GIT_CONFIG_GLOBAL: "/dev/null" },
  });
}

/** Does git read configuration from its environment (2.38)? */
async function hasRecentGit(): Promise<boolean> {
  const said = await git(["--version"]).then((it) => it.stdout, () => "");
  const [, major, minor] = /(\d+)\.(\d+)/.exec(said) ?? [];
  return Number(major) > 2 || Number(major) === 2 && Number(minor) >= 38;
}

Deno.test({
  name:
    "guestCwdAndEnv() lets git use repositories of another user, nested ones included",
  ignore: Deno.build.os === "windows" || !await hasRecentGit(),
  async fn() {
    await using dir = await temporaryDir();
    const outer = join(dir.path, "repository");
    const inner = join(outer, "vendor", "inner");
    for (const path of [outer, inner]) await git(["init", "-q", path]);
    const isRoot = Deno.uid() === 0;
    if (isRoot) await runProcess("chown", { args: ["-R", "54321", outer] });
    // Only root can give a repository to another user.
    const other: Record<string, string> = isRoot
      ? {}
      : { GIT_TEST_ASSUME_DIFFERENT_OWNER: "1" };
    const { env } = await guestCwdAndEnv([], { env: other });
    for (const path of [outer, inner]) {
      const args = ["-C", path, "status", "--short"];
      assertMatch((await git(args, other)).stderr, /dubious ownership/);
      const trusted = await git(args, env);
      assertEquals([trusted.code, trusted.stderr], [0, ""]);
    }
  },
});

Deno.test({
  name:
    "guestCwdAndEnv() starts a command in the directory of the nearest share",
  ignore: Deno.build.os === "windows",
  async fn() {
    const writable = true;
    const shares = [
      { writable, tag: "work", path: "/home/me/project" },
      { writable, tag: "out", path: "/home/me/project/out" },
      { writable, tag: "logs", path: "/home/me/logs" },
    ];
    const cwds = {
      "/home/me/project": "/mnt/work",
      "/home/me/project/src": "/mnt/work/src",
      "/home/me/project/..src": "/mnt/work/..src",
      "/home/me/project/out": "/mnt/out",
      "/home/me/project/out/bin": "/mnt/out/bin",
      "/home/me/project-2": "/mnt/work",
      "/home/me": "/mnt/work",
    };
    for (const [hostCwd, cwd] of Object.entries(cwds)) {
      const added = await guestCwdAndEnv(shares, { cwd: "", hostCwd });
      assertEquals(added.cwd, cwd, hostCwd);
    }
  },
});
