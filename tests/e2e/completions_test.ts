/**
 * Tests completion in real shells by pressing Tab.
 */
import { assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { requires } from "../support/parts.ts";
import { openTerminal } from "../support/tmux.ts";
import {
  cleanEnvironment,
  commandLine,
  workspace,
} from "../support/workspace.ts";

const SHELLS = {
  bash: {
    start: "bash --norc --noprofile",
    load: "source <(toolsmith completions bash)",
    ...requires("tmux"),
  },
  zsh: {
    start: "zsh -f",
    load:
      "autoload -U compinit; compinit -u -D; source <(toolsmith completions zsh)",
    ...requires("tmux", "zsh"),
  },
  fish: {
    start: "fish --no-config",
    load: "toolsmith completions fish | source",
    ...requires("tmux", "fish"),
  },
};

for (const [name, { start, load, ignore }] of Object.entries(SHELLS)) {
  Deno.test({
    name: `completions: ${name} completes commands, flags and values`,
    ignore,
    async fn() {
      await using work = await workspace();
      await writeWorkspace(work.dir);
      const { PATH, ...env } = cleanEnvironment();
      await using terminal = await openTerminal({
        cwd: work.dir,
        env: {
          ...env,
          PATH: `${work.dir}/bin:${PATH}`,
          HOME: work.dir,
          HISTFILE: "/dev/null",
        },
        shell: start,
      });
      await terminal.type(`${load}; clear; echo 'lo''aded'`);
      await terminal.shows(/^loaded/m);
      /** Types, presses Tab, and waits for the screen to match. */
      const completes = async (typed: string, shown: RegExp) => {
        await terminal.press("C-u");
        // The completion before may have been the same.
        await terminal.shows(new RegExp(`^(?![^]*${shown.source})`));
        await terminal.write(typed);
        await terminal.press("Tab");
        await terminal.shows(shown);
      };
      await completes("toolsmith hyd", /toolsmith hydrate/);
      await completes("toolsmith run --mem", /run --memory/);
      await completes("toolsmith run --execution h", /--execution host/);
      await completes("toolsmith run --memory=5", /--memory=512M/);
      await completes("toolsmith run fm", /run fmt/);
      // A tool name with shell syntax is not offered.
      await completes("toolsmith run li", /run lint/);
      await completes(
        "toolsmith init --ref ghcr.io/owner/im",
        /--ref ghcr\.io\/owner\/image:1\.0/,
      );
      await completes(
        "toolsmith init --ref ghcr.io/owner/image:",
        /--ref ghcr\.io\/owner\/image:1\.0/,
      );
      await completes(
        "toolsmith publish dist/im",
        /publish dist\/image\.qcow2/,
      );
      await completes("toolsmith hydrate --cache di", /--cache dist\//);
      await completes("toolsmith hydrate --manifest=dis", /--manifest=dist\//);
    },
  });
}

Deno.test("completions rejects an unknown shell", async () => {
  await using work = await workspace();
  const { code, stderr } = await work.toolsmith(["completions", "bsh"]);
  assertEquals(code, 2);
  assertMatch(stderr, /did you mean bash\?/);
});

/** Writes the program on PATH, a manifest with tools, and files to complete. */
async function writeWorkspace(dir: string) {
  await Deno.mkdir(join(dir, "bin"));
  await Deno.mkdir(join(dir, "dist"));
  await Deno.writeTextFile(join(dir, "dist", "image.qcow2"), "");
  await Deno.writeTextFile(
    join(dir, "bin", "toolsmith"),
    `#!/bin/sh\nexec ${await commandLine([])} "$@"\n`,
    { mode: 0o755 },
  );
  const image = {
    name: "image",
    tarball: "",
    sha256: "",
    qcow2: "oci://ghcr.io/owner/image:1.0",
    qcow2_sha256: "0".repeat(64),
  };
  const tools = {
    fmt: "/opt/fmt",
    lint: "/usr/bin/lint",
    "li;touch owned": "/x",
  };
  await Deno.writeTextFile(
    join(dir, ".toolsmith", "tools.json"),
    JSON.stringify({ image, tools, operations: [] }),
  );
}
