/** Tests that act as several users, which needs root. */
import { join } from "@std/path";
import { type ProcessResult, runProcess } from "../../lib/system/process.ts";
import { BUNDLE_PATH, writeBundle } from "../../scripts/bundle.ts";
import type { Part } from "../../scripts/setup.ts";
import { requires } from "./parts.ts";
import { cleanEnvironment, makeQcow2, workspace } from "./workspace.ts";

/**
 * Defines a test that needs root and the given programs; it is skipped otherwise.
 */
export function asRoot(
  name: string,
  fn: () => Promise<void>,
  programs: Part[] = [],
): void {
  Deno.test({ name, ...requires("root", ...programs), fn });
}

/** The ids of two users without other files. */
export const [BUILDER, ALICE] = [54_321, 54_322];

/** What {@linkcode testWithTwoUsers} gives a test. */
export interface TwoUsersBench {
  /** A directory with a home for each user, accessible to all. */
  dir: string;
  /** An image that all users may read. */
  image: string;
  /** Its digest. */
  sha256: string;
  /** Makes a directory that a user owns. */
  dirOf(user: number, path: string, mode?: number): Promise<string>;
  /** Runs Toolsmith as a user in the user's home. */
  toolsmith(
    user: number,
    args: string[],
    cache: string,
  ): Promise<ProcessResult>;
  /** Runs a shell command as a user. */
  sh(user: number, words: string): Promise<void>;
}

/** Runs a test with a workspace for each of two users, for the same image. */
export function testWithTwoUsers(
  name: string,
  body: (bench: TwoUsersBench) => Promise<void>,
): void {
  Deno.test({
    name,
    ...requires("qemuImg", "root"),
    async fn() {
      await using work = await workspace();
      const { dir } = work;
      await Deno.chmod(dir, 0o755);
      // Use the bundle, which runs without Deno's cache.
      if (!await writeBundle()) throw new Error("The program is not bundled");
      const program = join(dir, "toolsmith.js");
      await Deno.copyFile(BUNDLE_PATH, program);
      const { path: image, sha256 } = await makeQcow2(join(dir, "i.qcow2"));
      const dirOf = async (user: number, path: string, mode = 0o755) => {
        const made = join(dir, path);
        await Deno.mkdir(made, { recursive: true });
        await Deno.chmod(made, mode);
        await Deno.chown(made, user, user);
        return made;
      };
      for (const user of [0, BUILDER, ALICE]) {
        const home = await dirOf(user, `home/${user}`);
        const fields = { name: "demo", qcow2: image, qcow2_sha256: sha256 };
        const manifest = JSON.stringify({ image: fields });
        await Deno.writeTextFile(join(home, "tools.json"), manifest);
      }
      const as = (user: number, command: string[], cache = "") =>
        runProcess("setpriv", {
          args: [`--reuid=${user}`, `--regid=${user}`, "--clear-groups"]
            .concat("--", command),
          cwd: join(dir, "home", `${user}`),
          env: {
            ...cleanEnvironment(),
            DENO_DIR: join(dir, "home", `${user}`, "deno"),
            HOME: join(dir, "home", `${user}`),
            XDG_CACHE_HOME: "",
            TOOLSMITH_CACHE: cache,
            TOOLSMITH_MANIFEST: "tools.json",
          },
          timeoutMs: 600_000,
        });
      const flags = ["run", "-A", "--no-remote", "--no-npm"];
      await body({
        dir,
        image,
        sha256,
        dirOf,
        toolsmith: (user, args, cache) =>
          as(user, [Deno.execPath(), ...flags, program, ...args], cache),
        async sh(user, words) {
          const { code, stderr } = await as(user, ["sh", "-ec", words]);
          if (code !== 0) throw new Error(stderr);
        },
      });
    },
  });
}
