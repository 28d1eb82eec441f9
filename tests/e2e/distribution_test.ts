import { assert, assertEquals, assertMatch } from "@std/assert";
import { run } from "../../lib/system/process.ts";
import { VERSION } from "../../lib/version.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { needs, parts } from "../support/parts.ts";
import { startRegistry } from "../support/registry.ts";
import {
  cleanEnvironment,
  publishImage,
  workspace,
} from "../support/workspace.ts";

const REAL = needs("oras", "registry", "qemuImg");

Deno.test({
  name: "the single file hydrates from any directory, without network or cache",
  ...REAL,
  async fn() {
    const script = ["run", "-A", `${ROOT}/scripts/bundle.ts`];
    const bundled = await run(Deno.execPath(), {
      args: await denoArgs(script),
    });
    assertEquals(bundled.code, 0, bundled.stderr);

    await using registry = await startRegistry();
    await using work = await workspace();
    const file = `${work.dir}/toolsmith.js`;
    await Deno.copyFile(`${ROOT}/dist/toolsmith.js`, file);
    // So large that a thread, which is this file too, computes the digest.
    await publishImage(registry, work, { bytes: 65 * 1024 * 1024 });
    const env = {
      ...cleanEnvironment(),
      DENO_DIR: `${work.dir}/deno`,
      TOOLSMITH_ORAS: parts.oras!,
    };
    const { code, stdout, stderr } = await run(Deno.execPath(), {
      args: ["run", "-A", "--no-remote", "--no-npm", file, "hydrate"],
      cwd: work.dir,
      env,
    });
    assertEquals(code, 0, stderr);
    assertMatch(stdout, /^.+image\.qcow2\n$/);
    // As a second hydrate in the thread would.
    assert(!stderr.includes("waiting"), stderr);
  },
});

Deno.test({
  name: "the compiled program does what the script does",
  async fn() {
    const script = ["run", "-A", `${ROOT}/scripts/compile.ts`];
    const compiled = await run(Deno.execPath(), {
      args: await denoArgs(script),
    });
    if (compiled.code !== 0) {
      // Deno downloads the runtime; a network may not let it.
      assertMatch(compiled.stderr, /DENORT_BIN/);
      console.error("skipped: deno compile could not get its runtime (denort)");
      return;
    }
    const program = `${ROOT}/dist/toolsmith`;
    const version = await run(program, { args: ["--version"] });
    assertEquals(version.stdout, `toolsmith ${VERSION}\n`);
    const help = await run(program, { args: ["hydrate", "--help"] });
    assertMatch(help.stdout, /^Usage: toolsmith hydrate/);
    const wrong = await run(program, { args: ["hydrat"] });
    assertEquals(wrong.code, 2);
    const sum = await Deno.readTextFile(`${program}.sha256`);
    assertMatch(sum, /^[0-9a-f]{64} {2}toolsmith\n$/);
  },
});
