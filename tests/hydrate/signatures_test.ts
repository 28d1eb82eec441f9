import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { dirname, join } from "@std/path";
import { type ErrorCode, ToolsmithError } from "../../lib/errors.ts";
import { hydrate } from "../../lib/hydrate/hydrate.ts";
import { init, type InitOptions } from "../../lib/hydrate/init.ts";
import { doctor } from "../../lib/doctor/doctor.ts";
import { loadManifest } from "../../lib/manifest/manifest.ts";
import { publish } from "../../lib/publish/publish.ts";
import { runProcess } from "../../lib/system/process.ts";
import { denoCacheDir } from "../../lib/system/program_files.ts";
import { foundTools } from "../support/parts.ts";
import { startProxy } from "../support/proxy.ts";
import { hydrateWorkspace } from "../support/registry_hydrate.ts";
import {
  BUNDLE_TYPE,
  createSigningKey,
  createSigstore,
  GITHUB_ISSUER,
  type Json,
  REPOSITORY,
  WORKFLOW,
} from "../support/sigstore.ts";
import { jsonLines, makeQcow2, testWithImage } from "../support/workspace.ts";

const SIGSTORE = await createSigstore();
const KEY = createSigningKey();

interface SignatureBench {
  dir: string;
  /** The reference of the published image. */
  ref: string;
  /** The digest of its manifest. */
  digest: string;
  sha256: string;
  /** Path of the trusted root. */
  trustedRoot: string;
  manifestPath: string;
  stopRegistry(): Promise<void>;
  /** Publishes another image under the same tag; returns the manifest's digest. */
  republish(): Promise<string>;
  /** Attaches a bundle to a manifest with oras. */
  attach(bundle: Json, digest?: string): Promise<void>;
  init(options?: InitOptions): ReturnType<typeof init>;
  /** Runs the program, which trusts the trusted root. */
  toolsmith(
    args: string[],
    env?: Record<string, string>,
  ): ReturnType<typeof runProcess>;
}

/** Runs a test with a published image, which nobody has signed yet. */
function test(name: string, body: (bench: SignatureBench) => Promise<void>) {
  testWithImage(name, async ({ work, dir, image, sha256, registry, host }) => {
    const ref = `oci://${host}/owner/image:1.0`;
    const { digest } = await publish(image, ref.slice(6));
    const trustedRoot = join(dir, "root.json");
    const text = JSON.stringify(SIGSTORE.trustedRoot);
    await Deno.writeTextFile(trustedRoot, text);
    const attach = async (bundle: Json, to = digest) => {
      const text = JSON.stringify(bundle);
      await Deno.writeTextFile(join(dir, "bundle.json"), text);
      const { code, stderr } = await runProcess(foundTools.oras!, {
        args: [
          ...["attach", "--plain-http", "--artifact-type", BUNDLE_TYPE],
          ...[`${host}/owner/image@${to}`, `bundle.json:${BUNDLE_TYPE}`],
        ],
        cwd: dir,
      });
      assertEquals(code, 0, stderr);
    };
    await body({
      dir,
      ref,
      digest,
      sha256,
      trustedRoot,
      attach,
      manifestPath: join(dir, ".toolsmith", "tools.json"),
      stopRegistry: () => registry.stop(),
      async republish() {
        await makeQcow2(image);
        return (await publish(image, ref.slice(6))).digest;
      },
      init: (options = {}) =>
        init({ ref, cwd: dir, trustedRoot, retries: 0, ...options }),
      toolsmith: (args, env) =>
        work.toolsmith(args, {
          env: { TOOLSMITH_TRUSTED_ROOT: trustedRoot, ...env },
        }),
    });
  });
}

async function rejects(code: ErrorCode, promise: Promise<unknown>) {
  const error = await assertRejects(() => promise, ToolsmithError);
  assertEquals(error.code, code, error.message);
  return error;
}

async function readJson(path: string): Promise<Json> {
  return JSON.parse(await Deno.readTextFile(path));
}

test("init --signed-by pins a signed image, and hydrate verifies it once", async (bench) => {
  const { dir, digest, attach, trustedRoot } = bench;
  await attach(await SIGSTORE.sign({ digest }));
  const { manifest, path } = await bench.init({ signedBy: WORKFLOW });
  const rule = {
    identity: WORKFLOW,
    issuer: GITHUB_ISSUER,
    repository: REPOSITORY,
  };
  assertEquals(manifest.image.signature, rule);
  assertEquals((await readJson(path)).image.signature, rule);

  const pulled = await hydrateWorkspace(dir, { trustedRoot });
  const signature = { ...rule, signer: WORKFLOW };
  assertEquals(pulled.result?.signature, signature, `${pulled.error}`);
  assertEquals(pulled.of("signature_verified").map((it) => it.digest), [
    digest,
  ]);
  const types = pulled.events.map(({ type }) => type);
  const verifiedAt = types.indexOf("signature_verified");
  assert(verifiedAt < types.indexOf("download_start"), `${types}`);
  const record = join(dirname(pulled.result!.path), "verified.json");
  assertEquals((await readJson(record)).signature, signature);

  // A cached start needs neither the registry nor a trusted root.
  await bench.stopRegistry();
  const cached = await hydrateWorkspace(dir, { trustedRoot: "/nonexistent" });
  assertEquals(cached.result?.outcome, "cached");
  assertEquals(cached.result?.signature, signature);
  assertEquals(cached.of("signature_verified"), []);
});

test("init refuses an unsigned image, a wrong identity and a wrong key, and writes nothing", async (bench) => {
  const { dir, digest, attach, manifestPath } = bench;
  await rejects("signature_missing", bench.init({ signedBy: WORKFLOW }));
  await attach(await SIGSTORE.sign({ digest }));
  const signedBy = WORKFLOW.replace("main", "other");
  const error = await rejects("signature_invalid", bench.init({ signedBy }));
  assertStringIncludes(error.message, `by ${signedBy}`);
  assertStringIncludes(error.message, `a signature by ${WORKFLOW}`);
  const signingKey = join(dir, "cosign.pub");
  await Deno.writeTextFile(signingKey, KEY.publicKey);
  await rejects("signature_invalid", bench.init({ signingKey }));
  await rejects("file_unreadable", bench.init({ signingKey: "missing.pub" }));
  await assertRejects(() => Deno.stat(manifestPath), Deno.errors.NotFound);
});

test("init --signing-key writes the key, and hydrate needs no trusted root", async (bench) => {
  const { dir, digest, attach } = bench;
  await attach(KEY.sign({ digest }));
  await Deno.writeTextFile(join(dir, "cosign.pub"), KEY.publicKey);
  const { manifest } = await bench.init({
    signingKey: "cosign.pub",
    trustedRoot: "/nonexistent",
  });
  assertEquals(manifest.image.signature, { key: KEY.publicKey.trim() });
  const { result, error } = await hydrateWorkspace(dir);
  assertMatch(result?.signature?.signer ?? `${error}`, /^sha256:[0-9a-f]{64}$/);
});

test("hydrate refuses an image without a valid signature before it downloads a byte", async (bench) => {
  const { dir, ref, digest, sha256, manifestPath, trustedRoot } = bench;
  await using proxy = startProxy(new URL(ref.replace("oci", "http")).host);
  const qcow2 = ref.replace(/127[^/]*/, proxy.host);
  const signature = { identity: WORKFLOW };
  const image = { name: "demo", qcow2, qcow2_sha256: sha256, signature };
  await Deno.writeTextFile(manifestPath, JSON.stringify({ image }));
  for (const code of ["signature_missing", "signature_invalid"] as const) {
    const { error, events } = await hydrateWorkspace(dir, { trustedRoot });
    assertEquals(error?.code, code);
    const types = events.map(({ type }) => type);
    assertEquals(types.includes("download_start"), false, `${types}`);
    const other = `sha256:${"1".repeat(64)}`;
    await bench.attach(await SIGSTORE.sign({ digest: other }));
  }
  const layer = `GET /v2/owner/image/blobs/sha256:${sha256}`;
  const requested = proxy.seen.map(({ request }) =>
    decodeURIComponent(request)
  );
  assertEquals(requested.includes(layer), false, requested.join("\n"));
  await bench.attach(await SIGSTORE.sign({ digest }));
  const { result } = await hydrateWorkspace(dir, { trustedRoot });
  assertEquals(result?.outcome, "pulled");
});

test("hydrate verifies a cached image again for another rule, which needs the network", async (bench) => {
  const { dir, digest, manifestPath, trustedRoot } = bench;
  await bench.init();
  const unsigned = await hydrateWorkspace(dir);
  assertEquals(unsigned.result?.outcome, "pulled");
  await bench.attach(await SIGSTORE.sign({ digest }));
  const setRule = async (signature: unknown) => {
    const manifest = await readJson(manifestPath);
    manifest.image.signature = signature;
    await Deno.writeTextFile(manifestPath, JSON.stringify(manifest));
  };
  const hydrated = async (offline = false) => {
    const run = await hydrateWorkspace(dir, { trustedRoot, offline });
    const verified = run.of("signature_verified").length;
    return [run.error?.code ?? run.result?.outcome, verified];
  };
  await setRule({ identity: WORKFLOW });
  assertEquals(await hydrated(true), ["offline_miss", 0]);
  assertEquals(await hydrated(), ["cached", 1]);
  assertEquals(await hydrated(true), ["cached", 0]);
  await setRule({ identity: WORKFLOW.replace("main", "*") });
  assertEquals(await hydrated(true), ["offline_miss", 0]);
  assertEquals(await hydrated(), ["cached", 1]);
  await setRule({ key: KEY.publicKey });
  assertEquals(await hydrated(), ["signature_invalid", 0]);
  await setRule(undefined);
  assertEquals(await hydrated(true), ["cached", 0]);
});

test("hydrate does not believe a signature in a record that does not fit the file", async (bench) => {
  const { dir, digest, trustedRoot } = bench;
  await bench.attach(await SIGSTORE.sign({ digest }));
  await bench.init({ signedBy: WORKFLOW });
  const { result } = await hydrateWorkspace(dir, { trustedRoot });
  // A copy, as in a clone, has another inode and other times.
  const copy = `${result!.path}.copy`;
  await Deno.copyFile(result!.path, copy);
  await Deno.rename(copy, result!.path);
  const offline = await hydrateWorkspace(dir, { trustedRoot, offline: true });
  assertEquals(offline.error?.code, "offline_miss");
  const online = await hydrateWorkspace(dir, { trustedRoot });
  assertEquals(online.result?.outcome, "cached", `${online.error}`);
  assertEquals(online.of("signature_verified").length, 1);
});

test("init --update holds to the manifest's rule", async (bench) => {
  const { digest, manifestPath } = bench;
  await bench.attach(await SIGSTORE.sign({ digest }));
  await bench.init({ signedBy: WORKFLOW });
  const before = await Deno.readTextFile(manifestPath);
  const next = await bench.republish();
  await rejects("signature_missing", bench.init({ update: true }));
  assertEquals(await Deno.readTextFile(manifestPath), before);
  await bench.attach(await SIGSTORE.sign({ digest: next }), next);
  const { manifest, outcome } = await bench.init({ update: true });
  assertEquals(outcome, "updated");
  assertEquals("identity" in manifest.image.signature!, true);
  // Another rule replaces it.
  await bench.attach(KEY.sign({ digest: next }), next);
  await Deno.writeTextFile(`${bench.dir}/cosign.pub`, KEY.publicKey);
  await bench.init({ update: true, signingKey: "cosign.pub" });
  const { image } = await loadManifest(manifestPath);
  assertEquals(image.signature, { key: KEY.publicKey.trim() });
});

test("init refuses a rule for an image that is not in a registry", async (bench) => {
  const { dir, digest, manifestPath } = bench;
  const file = join("dist", "image.qcow2");
  const signedBy = WORKFLOW;
  const cases = [
    { ref: undefined, file, signedBy },
    { ref: "https://127.0.0.1:1/image.qcow2", signedBy },
    { issuer: "https://accounts.example.com" },
    { signedBy: "me@example.com" },
  ];
  for (const options of cases) await rejects("usage", bench.init(options));
  await assertRejects(() => Deno.stat(manifestPath), Deno.errors.NotFound);
  await bench.attach(await SIGSTORE.sign({ digest }));
  await bench.init({ signedBy });
  const update = { ref: undefined, file, update: true };
  await rejects("usage", bench.init(update));
  const text = await Deno.readTextFile(manifestPath);
  const changed = text.replace(/"oci:[^"]*"/, '"../dist/image.qcow2"');
  await Deno.writeTextFile(manifestPath, changed);
  const { message } = await rejects(
    "manifest_invalid",
    loadManifest(manifestPath),
  );
  assertMatch(message, /image\.signature: only oci:\/\/ images/);
  assertEquals(dir, dirname(dirname(manifestPath)));
});

test("hydrate refuses a rule for an image that is not in a registry", async (bench) => {
  const { manifest } = await bench.init();
  const signature = { key: KEY.publicKey };
  const path = join(bench.dir, "dist", "image.qcow2");
  const source = { kind: "file", path } as const;
  const image = { ...manifest.image, source, signature };
  await rejects("signature_missing", hydrate({ ...manifest, image }));
});

test("toolsmith init, hydrate --json and doctor name the signer with the documented permissions", async (bench) => {
  const { ref, digest, toolsmith, trustedRoot } = bench;
  await bench.attach(await SIGSTORE.sign({ digest }));
  const inited = await toolsmith([
    "init",
    "--ref",
    ref,
    "--signed-by",
    WORKFLOW,
  ]);
  assertEquals(inited.code, 0, inited.stderr);
  assertStringIncludes(inited.stderr, `image is signed by ${WORKFLOW}`);
  const hydrated = await toolsmith(["hydrate", "--json"]);
  assertEquals(hydrated.code, 0, hydrated.stdout);
  const { last, events } = jsonLines(hydrated.stdout);
  assertEquals(last.signature.signer, WORKFLOW);
  const event = events.find((it) => it.type === "signature_verified");
  assertEquals(event?.signer, WORKFLOW);
  const cwd = bench.dir;
  const findings = await doctor({ cwd, trustedRoot });
  const found = findings.find(({ check }) => check === "signature");
  assertEquals(found, {
    check: "signature",
    level: "ok",
    found: `${digest} is signed by ${WORKFLOW}`,
  });
  const untrusted = await doctor({ cwd, trustedRoot: "/nonexistent" });
  const failed = untrusted.find(({ check }) => check === "signature");
  assertEquals(failed?.level, "fail");
});

test("hydrate reports that no trusted root can be loaded", async (bench) => {
  const { dir, digest, toolsmith } = bench;
  await bench.attach(await SIGSTORE.sign({ digest }));
  await bench.init({ signedBy: WORKFLOW });
  const env = {
    TOOLSMITH_TRUSTED_ROOT: "",
    XDG_CACHE_HOME: join(dir, "home"),
    // Deno's own cache stays where it is.
    DENO_DIR: denoCacheDir()!,
    // Nothing listens there.
    HTTPS_PROXY: "http://127.0.0.1:1",
  };
  const { code, stderr } = await toolsmith(["hydrate"], env);
  assertEquals(code, 49, stderr);
  assertMatch(stderr, /trusted root from tuf-repo-cdn\.sigstore\.dev: /);
  assertMatch(stderr, /Connect|refused|tunnel/);
  assertMatch(stderr, /hint: .*--trusted-root FILE/);
  // With a file, neither the network nor the cache is used.
  const { trustedRoot } = bench;
  const given = await toolsmith(
    ["hydrate", "--trusted-root", trustedRoot],
    env,
  );
  assertEquals(given.code, 0, given.stderr);
});
