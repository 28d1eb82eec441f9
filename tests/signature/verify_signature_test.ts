import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import type { Environment } from "../../lib/environment.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  createSignatureRule,
  type SignatureRule,
} from "../../lib/manifest/signature_rule.ts";
import type { Endpoint } from "../../lib/oci/endpoints.ts";
import type { Digest } from "../../lib/system/digest.ts";
import { verifySignature } from "../../lib/signature/verify_signature.ts";
import { loadTrustedRoots } from "../../lib/signature/_trusted_roots.ts";
import { temporaryDir } from "../support/directory.ts";
import { startReferrersServer } from "../support/referrers_server.ts";
import {
  BUNDLE_TYPE,
  createSigningKey,
  createSigstore,
  GITHUB_ISSUER,
  type Json,
  REPOSITORY,
  type Sigstore,
  WORKFLOW,
} from "../support/sigstore.ts";

const DIGEST: Digest = `sha256:${"ab".repeat(32)}`;
const OTHER: Digest = `sha256:${"cd".repeat(32)}`;
const RULE = createSignatureRule({ identity: WORKFLOW });
const KEY = createSigningKey();
const SIGSTORE = await createSigstore();

interface VerifyOptions {
  rule?: SignatureRule;
  sigstores?: Sigstore[];
  mirrors?: Endpoint[];
  /** Load the trusted root as this environment says, instead of `sigstores`. */
  env?: Environment;
}

/** Verifies with the trusted roots of Sigstore instances. */
async function verifyAt(registry: Endpoint, options: VerifyOptions = {}) {
  const { rule = RULE, sigstores = [SIGSTORE], mirrors = [] } = options;
  await using dir = await temporaryDir();
  const trustedRoot = join(dir.path, "roots.jsonl");
  const roots = sigstores.map((it) => JSON.stringify(it.trustedRoot));
  await Deno.writeTextFile(trustedRoot, roots.join("\n"));
  const { host, repository } = registry;
  const artifact = {
    reference: {
      kind: "oci" as const,
      registry: host,
      repository,
      digest: DIGEST,
    },
    digest: DIGEST,
    mediaType: "",
    layers: [],
  };
  const trust = options.env
    ? { env: options.env }
    : { env: { get: () => undefined }, trustedRoot };
  const wanted = { rule, registry, mirrors };
  return await verifySignature(artifact, wanted, { retries: 0, ...trust });
}

async function verify(files: unknown[], options: VerifyOptions = {}) {
  await using server = await startReferrersServer({ digest: DIGEST, files });
  return await verifyAt(server.endpoint, options);
}

/** Not the port of a server that ended: another one may have got it meanwhile. */
function unreachable(endpoint: Endpoint): Endpoint {
  const host = "127.0.0.1:2";
  return { ...endpoint, host, baseUrl: `http://${host}/v2` };
}

const nextTask = () => new Promise((resolve) => setImmediate(resolve));

async function assertInvalid(
  files: unknown[],
  message: RegExp,
  options: VerifyOptions = {},
) {
  const error = await assertRejects(
    () => verify(files, options),
    ToolsmithError,
  );
  assertEquals(error.code, "signature_invalid", error.message);
  assertMatch(error.message, message);
}

Deno.test("verifySignature() returns the signer of a workflow's provenance", async () => {
  const bundle = await SIGSTORE.sign({ digest: DIGEST });
  assertEquals(await verify([bundle]), {
    identity: WORKFLOW,
    issuer: GITHUB_ISSUER,
    repository: REPOSITORY,
    signer: WORKFLOW,
  });
});

Deno.test("verifySignature() accepts a cosign signature of an e-mail address", async () => {
  const issuer = "https://accounts.example.com";
  const bundle = await SIGSTORE.sign({
    digest: DIGEST,
    identity: "me@example.com",
    issuer,
    predicateType: "https://sigstore.dev/cosign/sign/v1",
  });
  const rule = createSignatureRule({ identity: "me@example.com", issuer });
  const { signer } = await verify([bundle], { rule });
  assertEquals(signer, "me@example.com");
});

Deno.test("verifySignature() accepts any ref for a *", async () => {
  const bundle = await SIGSTORE.sign({ digest: DIGEST });
  const file = WORKFLOW.replace(/@.*/, "");
  for (const ref of ["*", "refs/heads/*", "refs/*/main"]) {
    const rule = createSignatureRule({ identity: `${file}@${ref}` });
    assertEquals((await verify([bundle], { rule })).signer, WORKFLOW);
  }
  const rule = createSignatureRule({ identity: `${file}@refs/tags/*` });
  await assertInvalid(
    [bundle],
    /refs\/tags\/\*.*a signature by .*heads\/main/,
    {
      rule,
    },
  );
});

Deno.test("verifySignature() rejects another identity, issuer and repository, and names them", async () => {
  const evil = "https://github.com/evil/repo";
  const identity = WORKFLOW.replace(REPOSITORY, evil);
  await assertInvalid(
    [await SIGSTORE.sign({ digest: DIGEST, identity })],
    /expected .*owner\/repo.*; found: a signature by https:\/\/github\.com\/evil/,
  );
  await assertInvalid(
    [await SIGSTORE.sign({ digest: DIGEST, issuer: "https://evil.test" })],
    /vouched for by https:\/\/evil\.test/,
  );
  // Any repository can call a reusable workflow, and gets its identity.
  const called = await SIGSTORE.sign({ digest: DIGEST, repository: evil });
  await assertInvalid([called], /for https:\/\/github\.com\/evil\/repo/);
  const rule = createSignatureRule({ identity: WORKFLOW, repository: evil });
  assertEquals((await verify([called], { rule })).signer, WORKFLOW);
  // The certificate says how long a name is in one, two or three bytes.
  for (const length of [150, 300]) {
    const repository = REPOSITORY.padEnd(length, "x");
    const bundle = await SIGSTORE.sign({ digest: DIGEST, repository });
    await assertInvalid([bundle], /for https:\/\/github\.com\/owner\/repoxx/);
    const rule = createSignatureRule({ identity: WORKFLOW, repository });
    assertEquals((await verify([bundle], { rule })).signer, WORKFLOW);
  }
});

Deno.test("verifySignature() rejects a certificate of another authority", async () => {
  const other = await createSigstore();
  const bundle = await other.sign({ digest: DIGEST });
  await assertInvalid([bundle], /certificate chain/);
  const sigstores = [SIGSTORE, other];
  assertEquals((await verify([bundle], { sigstores })).signer, WORKFLOW);
  const identity = WORKFLOW.replace("main", "other");
  const wrong = await SIGSTORE.sign({ digest: DIGEST, identity });
  await assertInvalid([wrong], /a signature by .*other/, { sigstores });
});

Deno.test("verifySignature() rejects another artifact's bundle and other statements", async () => {
  await assertInvalid(
    [await SIGSTORE.sign({ digest: OTHER })],
    /main signed another artifact/,
  );
  const predicateType = "https://example.com/scan/v1";
  await assertInvalid(
    [await SIGSTORE.sign({ digest: DIGEST, predicateType })],
    /signed no provenance/,
  );
});

Deno.test("verifySignature() rejects the log entry or certificate of another bundle, and payloads of other types", async () => {
  const good = await SIGSTORE.sign({ digest: OTHER });
  const evil = await SIGSTORE.sign({
    digest: DIGEST,
    identity: "https://github.com/evil/repo/w.yml@main",
  });
  const { tlogEntries, certificate } = good.verificationMaterial;
  const withMaterial = (material: Json) => ({
    ...evil,
    verificationMaterial: { ...evil.verificationMaterial, ...material },
  });
  await assertInvalid([withMaterial({ tlogEntries })], /found: \S/);
  await assertInvalid([withMaterial({ certificate })], /found: \S/);
  await assertInvalid(
    [withMaterial({ tlogEntries, certificate })],
    /found: \S/,
  );
  const payloadType = "application/json";
  const typed = KEY.sign({ digest: DIGEST, payloadType });
  const rule = { key: KEY.publicKey };
  await assertInvalid([typed], /signed no provenance/, { rule });
  // The type is part of what is signed.
  typed.dsseEnvelope.payloadType = "application/vnd.in-toto+json";
  await assertInvalid([typed], /verification failed/, { rule });
  const { dsseEnvelope, ...rest } = KEY.sign({ digest: DIGEST });
  const [{ sig }] = dsseEnvelope.signatures;
  const digest = { algorithm: "SHA2_256", digest: btoa(DIGEST) };
  const messageSignature = { messageDigest: digest, signature: sig };
  await assertInvalid([{ ...rest, messageSignature }], /found: \S/, { rule });
  await assertInvalid([{ ...rest, dsseEnvelope, messageSignature }], /\S/, {
    rule: { key: createSigningKey().publicKey },
  });
});

Deno.test("verifySignature() matches an identity as a whole, letter by letter", async () => {
  const file = WORKFLOW.replace(/@.*/, "");
  const others = [
    `${file}X@refs/heads/main`,
    `https://evil.test/${file}@refs/heads/main`,
    WORKFLOW.replace("owner/", "Owner/"),
    WORKFLOW.replace("publish.yml", "publishxyml"),
    `${WORKFLOW}\nx`,
    `x\n${WORKFLOW}`,
  ];
  const rule = createSignatureRule({ identity: `${file}@refs/heads/*` });
  for (const identity of others) {
    const bundle = await SIGSTORE.sign({ digest: DIGEST, identity });
    await assertInvalid([bundle], /a signature by /, { rule });
  }
  const issuer = `${GITHUB_ISSUER}.evil.test`;
  await assertInvalid(
    [await SIGSTORE.sign({ digest: DIGEST, issuer })],
    /evil/,
  );
  const repository = "";
  const bundle = await SIGSTORE.sign({ digest: DIGEST, repository });
  await assertInvalid([bundle], /a signature by /);
});

Deno.test("verifySignature() rejects a tampered payload", async () => {
  const bundle = await SIGSTORE.sign({ digest: OTHER });
  const { payload } = bundle.dsseEnvelope;
  bundle.dsseEnvelope.payload = btoa(
    atob(payload).replace("cd".repeat(32), "ab".repeat(32)),
  );
  await assertInvalid([bundle], /found: \S/);
  const byKey = KEY.sign({ digest: OTHER });
  byKey.dsseEnvelope.payload = bundle.dsseEnvelope.payload;
  await assertInvalid([byKey], /signature verification failed/, {
    rule: { key: KEY.publicKey },
  });
});

Deno.test("verifySignature() rejects a bundle without its log entry", async () => {
  const bundle = await SIGSTORE.sign({ digest: DIGEST });
  bundle.verificationMaterial.tlogEntries = [];
  await assertInvalid([bundle], /expected 1 timestamps, got 0/);
  // A timestamp does not replace the log.
  const instance = await createSigstore("timestamps");
  const stamped = await instance.sign({ digest: DIGEST });
  const { tlogs } = SIGSTORE.trustedRoot;
  const trustedRoot = { ...instance.trustedRoot, tlogs };
  const sigstores = [{ ...instance, trustedRoot }];
  await assertInvalid([stamped], /expected 1 tlog entries, got 0/, {
    sigstores,
  });
});

Deno.test("verifySignature() rejects a certificate that its authority did not log", async () => {
  const instance = await createSigstore("timestamps");
  const bundle = await instance.sign({ digest: DIGEST });
  const { ctlogs } = SIGSTORE.trustedRoot;
  const trustedRoot = { ...instance.trustedRoot, ctlogs };
  const sigstores = [{ ...instance, trustedRoot }];
  await assertInvalid([bundle], /expected 1 SCTs, got 0/, { sigstores });
});

Deno.test("verifySignature() accepts timestamps where the trusted root has no logs", async () => {
  const instance = await createSigstore("timestamps");
  const bundle = await instance.sign({ digest: DIGEST });
  const sigstores = [instance];
  assertEquals((await verify([bundle], { sigstores })).signer, WORKFLOW);
  bundle.verificationMaterial.timestampVerificationData = undefined;
  await assertInvalid([bundle], /expected 1 timestamps, got 0/, { sigstores });
});

Deno.test("verifySignature() rejects a certificate that had expired when it was used", async () => {
  for (const kind of ["logs", "timestamps"] as const) {
    const instance = await createSigstore(kind);
    const issued = new Date(Date.now() - 3_600_000);
    const bundle = await instance.sign({ digest: DIGEST, issued });
    const sigstores = [instance];
    await assertInvalid([bundle], /certificate chain/, { sigstores });
  }
});

Deno.test("verifySignature() accepts one right bundle among wrong ones", async () => {
  const wrong = await SIGSTORE.sign({ digest: OTHER });
  const right = await SIGSTORE.sign({ digest: DIGEST });
  const others = [
    wrong,
    "not JSON",
    "{}",
    "null",
    KEY.sign({ digest: DIGEST }),
  ];
  const { signer } = await verify([...others, right]);
  assertEquals(signer, WORKFLOW);
  await assertInvalid(others, /another artifact; .*; signed by a key/);
});

Deno.test("verifySignature() checks a key of each type, without logs", async () => {
  for (const type of ["ecdsa", "rsa", "ed25519"] as const) {
    const key = createSigningKey(type);
    const rule = createSignatureRule({ key: key.publicKey });
    const bundle = key.sign({ digest: DIGEST });
    assertMatch(
      (await verify([bundle], { rule })).signer,
      /^sha256:[0-9a-f]{64}$/,
    );
    await assertInvalid(
      [bundle],
      /expected a signature by the key sha256:.*verification failed/,
      { rule: { key: createSigningKey(type).publicKey } },
    );
    await assertInvalid(
      [await SIGSTORE.sign({ digest: DIGEST })],
      /by no key/,
      {
        rule,
      },
    );
    await assertInvalid([bundle], /signed by a key/);
  }
});

Deno.test("verifySignature() refuses a bundle of 50 MB without requesting it", async () => {
  const bundle = KEY.sign({ digest: DIGEST });
  bundle.padding = "x".repeat(50_000_000);
  const files = [bundle];
  await using server = await startReferrersServer({ digest: DIGEST, files });
  const error = await assertRejects(
    () => verifyAt(server.endpoint, { rule: { key: KEY.publicKey } }),
    ToolsmithError,
  );
  assertEquals(error.code, "signature_invalid");
  assertMatch(error.message, /50\d{6} bytes exceed 1 MiB/);
  assertEquals(server.requested.some((it) => it.startsWith("blobs/")), false);
});

Deno.test("verifySignature() stops reading a bundle that is larger than announced", async () => {
  const files = [KEY.sign({ digest: DIGEST })];
  let sent = 0;
  const endless = () =>
    new ReadableStream({
      pull(controller) {
        sent += 65536;
        controller.enqueue(new Uint8Array(65536));
      },
    });
  await using server = await startReferrersServer({
    digest: DIGEST,
    files,
    answer: (path) =>
      path.startsWith("blobs/") ? new Response(endless()) : undefined,
  });
  const error = await assertRejects(
    () => verifyAt(server.endpoint, { rule: { key: KEY.publicKey } }),
    ToolsmithError,
  );
  assertMatch(error.message, /exceeds 1 MiB/);
  assertEquals(sent < 20_000_000, true, `${sent} bytes`);
});

Deno.test("verifySignature() looks at 32 bundles at most, and at few log entries", async () => {
  const files = Array.from({ length: 40 }, (_, number) => ({ number }));
  await using server = await startReferrersServer({
    digest: DIGEST,
    files: [...files, KEY.sign({ digest: DIGEST })],
  });
  const rule = { key: KEY.publicKey };
  await assertRejects(
    () => verifyAt(server.endpoint, { rule }),
    ToolsmithError,
  );
  const count = server.requested.filter((it) => it.startsWith("blobs/")).length;
  assertEquals(count, 32);
  const bundle = await SIGSTORE.sign({ digest: DIGEST });
  const { tlogEntries } = bundle.verificationMaterial;
  while (tlogEntries.length < 17) tlogEntries.push(tlogEntries[0]);
  await assertInvalid([bundle], /more than 16 proofs/);
  const instance = await createSigstore("timestamps");
  const stamped = await instance.sign({ digest: DIGEST });
  const { timestampVerificationData: data } = stamped.verificationMaterial;
  data.rfc3161Timestamps = Array(17).fill(data.rfc3161Timestamps[0]);
  await assertInvalid([stamped], /more than 16 proofs/);
});

Deno.test("verifySignature() reports an unusable key of a rule as such", async () => {
  const key = KEY.publicKey.replace("MFkw", "AAAA");
  await assertRejects(
    () => verify([KEY.sign({ digest: DIGEST })], { rule: { key } }),
    ToolsmithError,
    "not a public key",
  );
});

Deno.test({
  name: "loadTrustedRoots() leaves the environment to calls that run at once",
  // Each call fails at its first request.
  permissions: { env: true, net: false, read: true, write: true, sys: ["uid"] },
  async fn() {
    const { env } = process;
    await using dir = await temporaryDir();
    const cache = {
      get: (name: string) => /^XDG/.test(name) ? dir.path : undefined,
    };
    const load = () =>
      assertRejects(() => loadTrustedRoots(true, { env: cache }));
    let isDone = false;
    const first = load().finally(() => isDone = true);
    // The second call starts while the first has replaced the environment.
    while (process.env === env && !isDone) await nextTask();
    assertEquals([isDone, process.env.PATH], [false, env.PATH]);
    await Promise.all([first, load()]);
    assert(process.env === env);
  },
});

Deno.test({
  name:
    "verifySignature() needs GitHub's trusted root only for its own instance and its workflows, and reads none that other users can write",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const cache = join(dir.path, "toolsmith", "tuf");
    await Deno.mkdir(cache, { recursive: true });
    await Deno.chmod(cache, 0o777);
    const env = {
      get: (name: string) => name === "XDG_CACHE_HOME" ? dir.path : undefined,
    };
    const bundle = await SIGSTORE.sign({ digest: DIGEST });
    const ofGithub = structuredClone(bundle);
    const { certificate } = ofGithub.verificationMaterial;
    const der = atob(certificate.rawBytes);
    assertStringIncludes(der, "sigstore.mock");
    certificate.rawBytes = btoa(der.replace("sigstore.mock", "GitHub, Inc.!"));
    const email = "me@example.com";
    const issuer = "https://accounts.example.com";
    const byEmail = createSignatureRule({ identity: email, issuer });
    const cases: [Json, SignatureRule, string][] = [
      [bundle, RULE, "tuf-repo-cdn.sigstore.dev"],
      [ofGithub, RULE, "tuf-repo.github.com"],
      [ofGithub, byEmail, "tuf-repo-cdn.sigstore.dev"],
    ];
    for (const [file, rule, host] of cases) {
      const error = await assertRejects(
        () => verify([file], { rule, env }),
        ToolsmithError,
      );
      assertEquals(error.code, "trust_root_unavailable");
      const { message } = error;
      assertStringIncludes(message, `root from ${host}: ${cache} can be writ`);
    }
  },
});

Deno.test("verifySignature() finds bundles under the fallback tag", async () => {
  const files = [await SIGSTORE.sign({ digest: DIGEST })];
  await using server = await startReferrersServer({
    digest: DIGEST,
    files,
    listedBy: "tag",
  });
  assertEquals((await verifyAt(server.endpoint)).signer, WORKFLOW);
  assertEquals(server.requested.slice(0, 2), [
    `referrers/${DIGEST}`,
    `manifests/${DIGEST.replace(":", "-")}`,
  ]);
});

Deno.test("verifySignature() skips whatever is no bundle in a registry's list", async () => {
  const digest = DIGEST;
  const right = { digest: OTHER, size: 1, artifactType: BUNDLE_TYPE };
  const others = [
    ...[null, 1, "x", [], {}],
    { ...right, digest: undefined },
    { ...right, digest: "sha256:../../x" },
    { ...right, digest: { toString: 1 } },
    { ...right, size: "1" },
    { ...right, size: -0.5 },
    { ...right, artifactType: "application/json" },
  ];
  const lists = ["<html>", "null", "[]", '"x"', '{"manifests":{}}'];
  lists.push(JSON.stringify({ manifests: others }));
  const files = [await SIGSTORE.sign({ digest })];
  for (const list of lists) {
    await using server = await startReferrersServer({
      ...{ digest, files, listedBy: "tag" },
      answer: (path) =>
        path.startsWith("referrers/") ? new Response(list) : undefined,
    });
    assertEquals((await verifyAt(server.endpoint)).signer, WORKFLOW, list);
    assertEquals(server.requested.length, 4, `${server.requested}`);
  }
});

Deno.test("verifySignature() asks the registry before a mirror that withholds the bundle", async () => {
  const files = [await SIGSTORE.sign({ digest: DIGEST })];
  await using registry = await startReferrersServer({ digest: DIGEST, files });
  await using mirror = await startReferrersServer({
    digest: DIGEST,
    files: [],
  });
  const mirrors = [mirror.endpoint];
  const { signer } = await verifyAt(registry.endpoint, { mirrors });
  assertEquals([signer, mirror.requested], [WORKFLOW, []]);
  // Without the registry, only the mirror can answer.
  const error = await assertRejects(
    () => verifyAt(unreachable(registry.endpoint), { mirrors }),
    ToolsmithError,
  );
  assertEquals(error.code, "signature_missing");
  const { host } = mirror.endpoint;
  assertMatch(
    error.message,
    new RegExp(`found at 127.0.0.1:2 \\(failed: .*\\), ${host}$`),
  );
});

Deno.test("verifySignature() uses a mirror's bundle if the registry is unreachable", async () => {
  const files = [await SIGSTORE.sign({ digest: DIGEST })];
  const digest = DIGEST;
  await using mirror = await startReferrersServer({ digest, files });
  const registry = unreachable(mirror.endpoint);
  const mirrors = [mirror.endpoint];
  assertEquals((await verifyAt(registry, { mirrors })).signer, WORKFLOW);
});

Deno.test("verifySignature() reports a missing signature, and an unreachable registry as such", async () => {
  const missing = await assertRejects(() => verify([]), ToolsmithError);
  assertEquals(missing.code, "signature_missing");
  await using down = await startReferrersServer({
    digest: DIGEST,
    files: [],
    answer: () => new Response(null, { status: 503 }),
  });
  const error = await assertRejects(
    () => verifyAt(down.endpoint),
    ToolsmithError,
  );
  assertEquals(error.code, "registry_unavailable");
});

Deno.test("verifySignature() reports an unusable trusted root", async () => {
  const bundle = await SIGSTORE.sign({ digest: DIGEST });
  const sigstores = [{ trustedRoot: "no root" } as Json];
  const error = await assertRejects(
    () => verify([bundle], { sigstores }),
    ToolsmithError,
  );
  assertEquals(error.code, "trust_root_unavailable");
  assertMatch(error.message, /roots\.jsonl/);
});
