import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import {
  type ProcessResult,
  runProcess,
  type RunProcessOptions,
} from "../../lib/system/process.ts";
import { VERSION } from "../../lib/version.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { foundTools, requires } from "../support/parts.ts";
import { startRegistry } from "../support/registry.ts";
import { BUNDLE_TYPE, createSigstore, WORKFLOW } from "../support/sigstore.ts";
import {
  cleanEnvironment,
  jsonLines,
  makeQcow2,
  publishImage,
  testWithImage,
  type Workspace,
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

/** Runs a copy of the bundle in a workspace, without network or Deno cache. */
async function runBundle(
  { dir }: Workspace,
  args: string[],
  options: RunProcessOptions = {},
): Promise<ProcessResult> {
  const file = `${dir}/toolsmith.js`;
  await Deno.copyFile(await (bundle ??= makeBundle()), file);
  return await runProcess(Deno.execPath(), {
    ...options,
    args: ["run", "-A", "--no-remote", "--no-npm", file, ...args],
    cwd: dir,
    env: {
      ...cleanEnvironment(),
      DENO_DIR: `${dir}/deno`,
      ...options.env,
    },
  });
}

Deno.test({
  name:
    "dist/toolsmith.js hydrates from any directory without network or Deno cache",
  ...REAL,
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    // Large enough that a worker thread computes the digest.
    await publishImage(registry, work, { bytes: 65 * 1024 * 1024 });
    const { code, stdout, stderr } = await runBundle(work, ["hydrate"]);
    assertEquals(code, 0, stderr);
    assertMatch(stdout, /^.+image\.qcow2\n$/);
  },
});

testWithImage(
  "dist/toolsmith.js verifies a signature without network or Deno cache",
  async ({ work, dir, image, sha256, host }) => {
    const { trustedRoot, sign } = await createSigstore();
    await Deno.writeTextFile(`${dir}/root.json`, JSON.stringify(trustedRoot));
    const reference = `${host}/owner/image:1.0`;
    const pushed = await runBundle(work, [
      "publish",
      image,
      reference,
      "--json",
    ]);
    assertEquals(pushed.code, 0, pushed.stderr);
    const { digest } = jsonLines(pushed.stdout).last;
    await work.manifest({
      ...{ qcow2: `oci://${reference}`, qcow2_sha256: sha256 },
      signature: { identity: WORKFLOW },
    });
    const env = { TOOLSMITH_TRUSTED_ROOT: `${dir}/root.json` };
    const unsigned = await runBundle(work, ["hydrate"], { env });
    assertStringIncludes(unsigned.stderr, "no signature found");
    const signature = JSON.stringify(await sign({ digest }));
    await Deno.writeTextFile(`${dir}/signature.json`, signature);
    const attached = await runProcess(foundTools.oras!, {
      args: [
        ...["attach", "--plain-http", "--artifact-type", BUNDLE_TYPE],
        ...[`${host}/owner/image@${digest}`, `signature.json:${BUNDLE_TYPE}`],
      ],
      cwd: dir,
    });
    assertEquals(attached.code, 0, attached.stderr);
    const signed = await runBundle(work, ["hydrate", "--json"], { env });
    assertEquals(signed.code, 0, signed.stderr);
    assertEquals(jsonLines(signed.stdout).last.signature.signer, WORKFLOW);
  },
);

Deno.test("dist/toolsmith.js serves MCP without network or Deno cache", async () => {
  await using work = await workspace();
  await work.manifest({ qcow2: "none.qcow2", qcow2_sha256: "0".repeat(64) });
  const clientInfo = { name: "test", version: "1.0.0" };
  const params = {
    protocolVersion: "2025-06-18",
    capabilities: {},
    clientInfo,
  };
  const request = { jsonrpc: "2.0", id: 0, method: "initialize", params };
  const input = `${JSON.stringify(request)}\n`;
  const { code, stdout, stderr } = await runBundle(work, ["mcp"], { input });
  assertEquals(code, 0, stderr);
  const { result } = JSON.parse(stdout);
  assertEquals(result.serverInfo, { name: "toolsmith", version: VERSION });
});

Deno.test("dist/toolsmith.js imports no module at its start", async () => {
  const made = await (bundle ??= makeBundle());
  const { stdout } = await runProcess(Deno.execPath(), {
    args: ["info", "--json", "--no-config", made],
  });
  const [{ dependencies }] = JSON.parse(stdout).modules;
  const atStart = dependencies.filter((
    { isDynamic }: { isDynamic?: boolean },
  ) => !isDynamic);
  assertEquals(atStart, []);
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
