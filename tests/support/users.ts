/**
 * Tests with other users of the host, whom only root can play.
 *
 * @module
 */
import { join } from "@std/path";
import { type Output, run } from "../../lib/system/process.ts";
import { BUNDLE, bundle } from "../../scripts/bundle.ts";
import { needs } from "./parts.ts";
import { cleanEnvironment, makeQcow2, workspace } from "./workspace.ts";

/** Defines a test that changes owners; it is skipped for other users than root. */
export function asRoot(name: string, fn: () => Promise<void>): void {
  Deno.test({ name, ...needs("root"), fn });
}

/** Two users who own nothing else. */
export const [BUILDER, ALICE] = [54_321, 54_322];

/** What {@linkcode testWithUsers} gives a test. */
export interface UsersBench {
  /** A directory that all may enter. It holds a home for each user. */
  dir: string;
  /** An image, which all may read. */
  image: string;
  /** Its digest. */
  sha256: string;
  /** Makes a directory of a user's. */
  dirOf(user: number, path: string, mode?: number): Promise<string>;
  /** Runs Toolsmith as a user, in the user's home. */
  toolsmith(user: number, args: string[], cache: string): Promise<Output>;
  /** Runs a shell's words as a user. */
  sh(user: number, words: string): Promise<void>;
}

/** Runs one test with a workspace for each user, whose manifests name one image. */
export function testWithUsers(
  name: string,
  body: (bench: UsersBench) => Promise<void>,
): void {
  Deno.test({
    name,
    ...needs("qemuImg", "root"),
    async fn() {
      await using work = await workspace();
      const { dir } = work;
      await Deno.chmod(dir, 0o755);
      // In one file, which a user without Deno's cache can run.
      if (!await bundle()) throw new Error("The program is not bundled");
      const program = join(dir, "toolsmith.js");
      await Deno.copyFile(BUNDLE, program);
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
        run("setpriv", {
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
          timeoutMs: 60_000,
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
