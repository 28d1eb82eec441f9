import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { VERSION } from "../../lib/version.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { foundTools, requires } from "../support/parts.ts";
import { startRegistry } from "../support/registry.ts";
import {
  cleanEnvironment,
  makeQcow2,
  publishImage,
  workspace,
} from "../support/workspace.ts";

const REAL = requires("oras", "registry", "qemuImg");

/** The bundle, made once for all tests. */
let bundle: Promise<string> | undefined;

async function makeBundle(): Promise<string> {
  const script = ["run", "-A", `${PROJECT_ROOT}/scripts/bundle.ts`];
  const bundled = await runProcess(Deno.execPath(), {
    args: await withImportMap(script),
  });
  assertEquals(bundled.code, 0, bundled.stderr);
  return `${PROJECT_ROOT}/dist/toolsmith.js`;
}

Deno.test({
  name:
    "dist/toolsmith.js hydrates from any directory without network or Deno cache",
  ...REAL,
  async fn() {
    const made = await (bundle ??= makeBundle());
    await using registry = await startRegistry();
    await using work = await workspace();
    const file = `${work.dir}/toolsmith.js`;
    await Deno.copyFile(made, file);
    // Large enough that a worker thread computes the digest.
    await publishImage(registry, work, { bytes: 65 * 1024 * 1024 });
    const env = {
      ...cleanEnvironment(),
      DENO_DIR: `${work.dir}/deno`,
      TOOLSMITH_ORAS: foundTools.oras!,
    };
    const { code, stdout, stderr } = await runProcess(Deno.execPath(), {
      args: ["run", "-A", "--no-remote", "--no-npm", file, "hydrate"],
      cwd: work.dir,
      env,
    });
    assertEquals(code, 0, stderr);
    assertMatch(stdout, /^.+image\.qcow2\n$/);
  },
});

Deno.test({
  name: "run rejects an export that lets a guest change the program",
  ...requires("qemuImg"),
  async fn() {
    const made = await (bundle ??= makeBundle());
    await using work = await workspace();
    const at = (name: string) => join(work.dir, name);
    const { sha256 } = await makeQcow2(at(".toolsmith/image.qcow2"), 65536);
    await work.manifest({ qcow2: "image.qcow2", qcow2_sha256: sha256 });
    const dirs = [
      "app",
      "bin/early",
      "deno/npm",
      "docker",
      "mirrors",
      "real",
      "out",
    ];
    for (const dir of dirs) await Deno.mkdir(at(dir), { recursive: true });
    await Deno.copyFile(made, at("app/toolsmith.js"));
    await Deno.writeTextFile(at("real/helper"), "", { mode: 0o755 });
    await Deno.symlink(at("real/helper"), at("bin/docker-credential-mine"));
    await Deno.writeTextFile(at("docker/config.json"), '{"credsStore":"mine"}');
    await Deno.link(at(".toolsmith/tools.json"), at("out/link"));
    const { PATH, ...clean } = cleanEnvironment();
    const env = {
      ...clean,
      PATH: `${at("bin/early")}:${PATH}:${at("bin")}`,
      DENO_DIR: at("deno"),
      DOCKER_CONFIG: at("docker"),
      TOOLSMITH_REGISTRY_CONFIG: at("mirrors"),
    };
    const cases = [
      ["app", "app/toolsmith.js"],
      ["bin/early", "bin/early"],
      ["deno/npm", "deno"],
      ["docker", "docker"],
      ["mirrors", "mirrors"],
      ["real", "real/helper"],
      ["out", ".toolsmith/tools.json"],
    ];
    for (const [dir, held] of cases) {
      const command = ["run", "--quiet", "--export", at(dir), "true"];
      const { code, stderr } = await runProcess(Deno.execPath(), {
        args: [
          "run",
          "-A",
          "--cached-only",
          at("app/toolsmith.js"),
          ...command,
        ],
        cwd: work.dir,
        env,
      });
      assertEquals(code, 2, stderr);
      assertStringIncludes(
        stderr,
        `Cannot export ${at(dir)}: the guest could write to ${at(held)}`,
      );
    }
  },
});

Deno.test({
  name:
    "dist/toolsmith prints version and help, and rejects an unknown command",
  async fn() {
    const script = ["run", "-A", `${PROJECT_ROOT}/scripts/compile.ts`];
    const compiled = await runProcess(Deno.execPath(), {
      args: await withImportMap(script),
    });
    if (compiled.code !== 0) {
      // Deno downloads the runtime, which may fail without network.
      assertMatch(compiled.stderr, /DENORT_BIN/);
      console.error("skipped: deno compile could not get its runtime (denort)");
      return;
    }
    const program = `${PROJECT_ROOT}/dist/toolsmith`;
    const version = await runProcess(program, { args: ["--version"] });
    assertEquals(version.stdout, `toolsmith ${VERSION}\n`);
    const help = await runProcess(program, { args: ["hydrate", "--help"] });
    assertMatch(help.stdout, /^Usage: toolsmith hydrate/);
    const wrong = await runProcess(program, { args: ["hydrat"] });
    assertEquals(wrong.code, 2);
    const sum = await Deno.readTextFile(`${program}.sha256`);
    assertMatch(sum, /^[0-9a-f]{64} {2}toolsmith\n$/);
  },
});
