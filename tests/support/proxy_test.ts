/**
 * Tests the proxies that other tests rely on, with the real oras and plain requests.
 */
import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { type ProcessResult, runProcess } from "../../lib/system/process.ts";
import { foundTools, requires } from "./parts.ts";
import { type ProxyFault, startProxy } from "./proxy.ts";
import {
  PASSWORD,
  type Registry,
  startRegistry,
  USERNAME,
} from "./registry.ts";
import { startTunnel } from "./tunnel.ts";

const BLOB = /^GET .*\/blobs\//;
const SIZE = 300_000;

function fetchManifest(host: string, method = "GET"): Promise<Response> {
  const accept = "application/vnd.oci.image.manifest.v1+json";
  const url = `http://${host}/v2/owner/image/manifests/v1`;
  return fetch(url, { method, headers: { accept } });
}

/** Pushes a file of {@linkcode SIZE} bytes, and lets the test pull it. */
async function withArtifact(
  test: (
    registry: Registry,
    pull: (host: string) => Promise<ProcessResult>,
  ) => Promise<void>,
): Promise<void> {
  await using registry = await startRegistry();
  const dir = await Deno.makeTempDir();
  const oras = (...args: string[]) =>
    runProcess(foundTools.oras!, { args, cwd: dir, timeoutMs: 600_000 });
  try {
    await Deno.writeFile(`${dir}/file.bin`, new Uint8Array(SIZE));
    const reference = `${registry.host}/owner/image:v1`;
    const pushed = await oras("push", "--plain-http", reference, "file.bin");
    assertEquals(pushed.code, 0, pushed.stderr);
    await test(
      registry,
      (host) => oras("pull", "--plain-http", `${host}/owner/image:v1`),
    );
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

const pullsThatFail: [string, ProxyFault, RegExp][] = [
  ["cut mid-way", { match: BLOB, cutAfter: 200_000 }, /unexpected EOF/],
  [
    "of other bytes",
    { match: BLOB, replace: (body) => body.fill(1) },
    /mismatched digest/,
  ],
  ["refused", { match: BLOB, status: 403 }, /denied:/],
  ["that is not there", { match: /v1$/, status: 404 }, /not found/],
];

for (const [name, fault, says] of pullsThatFail) {
  Deno.test({
    name: `startProxy() makes a pull that is ${name} fail once, then succeed`,
    ...requires("oras", "registry"),
    fn: () =>
      withArtifact(async (registry, pull) => {
        await using proxy = startProxy(registry.host, [{ ...fault, times: 1 }]);
        assertMatch((await pull(proxy.host)).stderr, says);
        assertEquals((await pull(proxy.host)).code, 0);
        const blobs = proxy.seen.filter(({ request }) => BLOB.test(request));
        assertEquals(blobs.at(-1)?.bytes, SIZE);
        if ("cutAfter" in fault) assertEquals(blobs[0].bytes, 200_000);
      }),
  });
}

Deno.test({
  name: "startProxy() forwards a push and skips as many requests as configured",
  ...requires("oras", "registry"),
  fn: () =>
    withArtifact(async (registry) => {
      await using proxy = startProxy(registry.host, [
        { match: /^GET .*\/v1$/, status: 429, after: 1, times: 2 },
      ]);
      const statuses = [];
      for (let i = 0; i < 4; i++) {
        const response = await fetchManifest(proxy.host);
        statuses.push(response.status);
        await response.body?.cancel();
      }
      assertEquals(statuses, [200, 429, 429, 200]);
      const pushed = await runProcess(foundTools.oras!, {
        args: ["push", "--plain-http", `${proxy.host}/owner/image:v2`],
      });
      assertEquals(pushed.code, 0, pushed.stderr);
      assertEquals(
        proxy.seen.at(-1)?.request,
        "PUT /v2/owner/image/manifests/v2",
      );
    }),
});

Deno.test({
  name: "startProxy() replaces a manifest for HEAD and GET alike",
  ...requires("oras", "registry"),
  fn: () =>
    withArtifact(async (registry) => {
      await using proxy = startProxy(registry.host, [{
        match: /v1$/,
        replace: () => new TextEncoder().encode("{}"),
      }]);
      const heads = [];
      for (const method of ["HEAD", "GET"]) {
        const response = await fetchManifest(proxy.host, method);
        heads.push([
          response.headers.get("content-length"),
          response.headers.get("docker-content-digest")?.slice(0, 15),
        ]);
        assertEquals(await response.text(), method === "GET" ? "{}" : "");
      }
      const expected = ["2", "sha256:44136fa3"];
      assertEquals(heads, [expected, expected]);
    }),
});

for (const fault of [{ stallAfter: 100 }, { hang: true as const }]) {
  const name = Object.keys(fault)[0];
  Deno.test({
    name: `startProxy() with ${name}: the client waits until the proxy ends`,
    ...requires("oras", "registry"),
    fn: () =>
      withArtifact(async (registry) => {
        const proxy = startProxy(registry.host, [{ match: /v1$/, ...fault }]);
        const bytes: number[] = [];
        const reading = assertRejects(async () => {
          const response = await fetchManifest(proxy.host);
          for await (const chunk of response.body!) bytes.push(chunk.length);
        });
        const enough = "stallAfter" in fault ? 100 : 0;
        const fetched = () => bytes.reduce((sum, size) => sum + size, 0);
        while (proxy.seen.length === 0 || fetched() < enough) {
          await new Promise((done) => setTimeout(done, 5));
        }
        await proxy[Symbol.asyncDispose]();
        await reading;
        assertEquals(fetched(), enough);
      }),
  });
}

Deno.test({
  name:
    "startTunnel() connects oras to a registry as ghcr.io and to nothing else",
  ...requires("oras", "registry", "openssl"),
  async fn() {
    await using registry = await startRegistry({
      auth: "token",
      tls: true,
      names: ["ghcr.io"],
    });
    await using tunnel = startTunnel({ "ghcr.io:443": registry.host });
    const push = (host: string) =>
      runProcess(foundTools.oras!, {
        args: [
          "push",
          ...registry.orasFlags,
          ...["-u", USERNAME, "--password-stdin"],
          `${host}/owner/image:v1`,
        ],
        env: tunnel.env,
        input: PASSWORD,
        timeoutMs: 600_000,
      });
    const pushed = await push("ghcr.io");
    assertEquals(pushed.code, 0, pushed.stderr);
    assertMatch((await push("elsewhere.invalid")).stderr, /Forbidden/);
    assertEquals(new Set(tunnel.asked).has("elsewhere.invalid:443"), true);
  },
});
