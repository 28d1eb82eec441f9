import { assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { run } from "../../lib/system/process.ts";
import { surroundings } from "../../lib/vm/_surroundings.ts";
import { temporaryDir } from "../support/directory.ts";

/** Runs this host's git, which knows nothing but its environment. */
function git(args: string[], env: Record<string, string> = {}) {
  return run("git", { args, env: { ...env, GIT_CONFIG_GLOBAL: "/dev/null" } });
}

/** Can git be told by its environment? That came with 2.38. */
async function hasRecentGit(): Promise<boolean> {
  const said = await git(["--version"]).then((it) => it.stdout, () => "");
  const [, major, minor] = /(\d+)\.(\d+)/.exec(said) ?? [];
  return Number(major) > 2 || Number(major) === 2 && Number(minor) >= 38;
}

Deno.test({
  name:
    "git works in a repository of another user, and in one inside it, with the environment of a command",
  ignore: Deno.build.os === "windows" || !await hasRecentGit(),
  async fn() {
    await using dir = await temporaryDir();
    const outer = join(dir.path, "repository");
    const inner = join(outer, "vendor", "inner");
    for (const path of [outer, inner]) await git(["init", "-q", path]);
    const isRoot = Deno.uid() === 0;
    if (isRoot) await run("chown", { args: ["-R", "54321", outer] });
    // Who is not root cannot make a repository another user's.
    const other: Record<string, string> = isRoot
      ? {}
      : { GIT_TEST_ASSUME_DIFFERENT_OWNER: "1" };
    const { env } = await surroundings([], { env: other });
    for (const path of [outer, inner]) {
      const args = ["-C", path, "status", "--short"];
      assertMatch((await git(args, other)).stderr, /dubious ownership/);
      const trusted = await git(args, env);
      assertEquals([trusted.code, trusted.stderr], [0, ""]);
    }
  },
});
