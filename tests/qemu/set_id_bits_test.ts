import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  CLEAR_SET_ID_SHELL_FUNCTION,
  clearSetIdBits,
} from "../../lib/qemu/set_id_bits.ts";
import { runProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { ALICE, asRoot, BUILDER } from "../support/users.ts";

Deno.test({
  name:
    "clearSetIdBits() clears set-user-ID and set-group-ID bits and changes no other mode",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const at = (name: string) => join(dir.path, name);
    const modes: [name: string, before: number, after: number][] = [
      ["out/both", 0o6755, 0o755],
      ["out/user", 0o4711, 0o711],
      ["out/group", 0o2640, 0o640],
      ["out/plain", 0o1604, 0o1604],
      ["out/deep/closed/user", 0o4755, 0o755],
      ["other/user", 0o4755, 0o755],
      ["work/user", 0o4755, 0o4755],
      ["beside/user", 0o4755, 0o4755],
    ];
    for (const name of ["out/deep/closed", "other", "work", "beside"]) {
      await Deno.mkdir(at(name), { recursive: true });
    }
    for (const [name, before] of modes) {
      await Deno.writeTextFile(at(name), "");
      await Deno.chmod(at(name), before);
    }
    await Deno.symlink(at("beside"), at("out/dir"));
    await Deno.symlink(at("beside/user"), at("out/link"));
    // Inaccessible to its owner, accessible to others.
    await Deno.chmod(at("out/deep/closed"), 0o055);
    await Deno.chmod(at("out/deep"), 0o2755);
    await clearSetIdBits(["out", "gone", "other"].map(at));
    const mode = (name: string) => Deno.lstatSync(at(name)).mode! & 0o7777;
    assertEquals(
      modes.map(([name]) => [name, mode(name).toString(8)]),
      modes.map(([name, , after]) => [name, after.toString(8)]),
    );
    assertEquals(mode("out/deep/closed"), 0o755);
    assertEquals(mode("out/deep"), 0o2755);
    await clearSetIdBits([]);
  },
});

/** Runs a script in a directory. */
async function sh(dir: string, script: string): Promise<string> {
  const { code, stdout, stderr } = await runProcess("sh", {
    args: ["-c", script],
    cwd: dir,
  });
  assertEquals(code, 0, stderr);
  return stdout.trim();
}

const SET_ID_FILES = `find . '(' -perm -4000 -o -perm -2000 ')' | wc -l`;

Deno.test({
  name:
    "clearSetIdBits() finds names that are not UTF-8 and paths beyond PATH_MAX",
  ignore: Deno.build.os !== "linux",
  async fn() {
    await using dir = await temporaryDir();
    await sh(
      dir.path,
      `set -e
      name=$(printf 'n\\377me')
      mkdir "$name" ./-dash
      for file in "$name/tool" "$name/$name" ./-dash/-tool; do
        touch "$file"
        chmod 4755 "$file"
      done
      long=$(printf '%0200d' 0)
      for level in $(seq 30); do mkdir "$long" && cd -P "$long" || exit; done
      touch tool && chmod 6755 tool`,
    );
    assertEquals(await sh(dir.path, SET_ID_FILES), "4");
    await clearSetIdBits([dir.path]);
    assertEquals(await sh(dir.path, SET_ID_FILES), "0");
    // Deno cannot remove paths of this length.
    await sh(dir.path, "rm -rf ./*");
  },
});

Deno.test({
  name: "clearSetIdBits() reports what it cannot search or change",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const program = join(dir.path, "find");
    await Deno.writeTextFile(
      program,
      `#!/bin/sh\necho "find: 'a': Input/output error" >&2\nexit 1\n`,
      { mode: 0o755 },
    );
    const path = Deno.env.get("PATH")!;
    Deno.env.set("PATH", `${dir.path}:${path}`);
    try {
      const exported = join(dir.path, "it's");
      await Deno.mkdir(exported);
      const error = await expectFailure(
        "guest_failed",
        () => clearSetIdBits([exported]),
      );
      assertEquals(
        error.message,
        `Cannot clear the set-user-ID and set-group-ID bits that the guest may have left in ${exported}: find: 'a': Input/output error`,
      );
      assertEquals(
        error.hint,
        `remove the bits: find '${dir.path}/it'\\''s' -type f -exec chmod ug-s {} +`,
      );
    } finally {
      Deno.env.set("PATH", path);
    }
  },
});

Deno.test({
  name:
    "clearSetIdBits() clears the bits even if its caller aborts the wait and exits",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const tool = join(dir.path, "tool");
    await Deno.writeTextFile(tool, "");
    await Deno.chmod(tool, 0o4755);
    const script = join(dir.path, "cancelled.ts");
    await Deno.writeTextFile(
      script,
      `import { clearSetIdBits } from "${PROJECT_ROOT}/lib/qemu/set_id_bits.ts";
      const signal = AbortSignal.abort("enough");
      await clearSetIdBits(["${dir.path}"], { signal });
      console.log("enough");`,
    );
    const { stdout } = await runProcess(Deno.execPath(), {
      args: await withImportMap(["run", "-A", script]),
    });
    assertEquals(stdout, "enough\n");
    while (Deno.lstatSync(tool).mode! & 0o6000) {
      await new Promise((done) => setTimeout(done, 20));
    }
  },
});

asRoot(
  "clearSetIdBits() as root clears files below PATH_MAX in another user's directory",
  async () => {
    await using dir = await temporaryDir();
    await sh(
      dir.path,
      `long=$(printf '%0200d' 0)
      for level in $(seq 25); do mkdir "$long" && cd -P "$long" || exit; done
      mkdir theirs && touch theirs/tool && chmod 4755 theirs/tool
      chown ${ALICE} theirs`,
    );
    await clearSetIdBits([dir.path]);
    assertEquals(await sh(dir.path, SET_ID_FILES), "0");
    await sh(dir.path, "rm -rf ./*");
  },
);

asRoot(
  "clear_set_id skips unreadable directories of other users",
  async () => {
    await using dir = await temporaryDir();
    await sh(
      dir.path,
      `mkdir closed open && touch closed/tool open/tool
      chown -R ${ALICE} open && chown ${BUILDER} closed
      chmod 4755 closed/tool open/tool && chmod 700 closed && chmod 755 .`,
    );
    const user = [`--reuid=${ALICE}`, `--regid=${ALICE}`, "--clear-groups"];
    const script = `${CLEAR_SET_ID_SHELL_FUNCTION}clear_set_id "$1"`;
    const { code, stderr } = await runProcess("setpriv", {
      args: [...user, "sh", "-c", script, "sh", dir.path],
    });
    assertEquals([code, stderr], [0, ""]);
    assert(Deno.lstatSync(join(dir.path, "closed/tool")).mode! & 0o4000);
    assertEquals(Deno.lstatSync(join(dir.path, "open/tool")).mode! & 0o6000, 0);
  },
);
