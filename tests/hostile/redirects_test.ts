/**
 * A public registry that redirects a download to services that only this host can
 * reach.
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { startBlobServer } from "../support/blob_server.ts";
import { certificateOfFile } from "../support/certificates.ts";
import { startHostileRegistry } from "../support/hostile_registry.ts";
import { hydrateInProcess } from "../support/hydrate_here.ts";
import { requires } from "../support/parts.ts";
import { startTunnel } from "../support/tunnel.ts";
import { workspace } from "../support/workspace.ts";

const HOST = "registry.example.com";
const MIB = 1024 * 1024;
const NEEDED = requires("oras", "openssl");
const certificate = certificateOfFile(NEEDED.ignore, [HOST]);

/** Starts a registry with a public host name, and a local service. */
async function scene(size: number) {
  await using undo = new AsyncDisposableStack();
  const work = undo.use(await workspace());
  const { certFile, keyFile, caFile } = certificate();
  const registry = undo.use(startHostileRegistry({
    cert: await Deno.readTextFile(certFile),
    key: await Deno.readTextFile(keyFile),
  }));
  const tunnel = undo.use(
    startTunnel({ [`${HOST}:443`]: registry.host }),
  );
  const reached: string[] = [];
  const service = undo.use(
    Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen() {} },
      ({ method, url }) => {
        reached.push(`${method} ${url}`);
        return new Response("a secret of this host");
      },
    ),
  );
  const sha256 = "0".repeat(64);
  const title = { "org.opencontainers.image.title": "image.qcow2" };
  await registry.manifest("1", {
    schemaVersion: 2,
    config: await registry.blob(new TextEncoder().encode("{}")),
    layers: [{
      ...{ mediaType: "application/octet-stream", size, annotations: title },
      digest: `sha256:${sha256}`,
    }],
  });
  await work.manifest({
    qcow2: `oci://${HOST}/owner/image:1`,
    qcow2_sha256: sha256,
  });
  const all = undo.move();
  return {
    ...{ registry, tunnel, reached, service: `127.0.0.1:${service.addr.port}` },
    hydrate: (more: Record<string, string> = {}) =>
      hydrateInProcess(work, { variables: { ...tunnel.env, ...more }, caFile }),
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

for (
  const [how, size] of [["by range requests", 64 * MIB], [
    "by oras pull",
    MIB,
  ]] as const
) {
  Deno.test({
    name:
      `hydrate refuses a registry's redirect to a service of this host, ${how}`,
    ...NEEDED,
    async fn() {
      await using all = await scene(size);
      const locations: [string, string][] = [
        [`http://${all.service}/latest/meta-data`, "which is not HTTPS"],
        ["http://169.254.169.254/latest", "which is not HTTPS"],
        [
          `https://${all.service}/`,
          "an address of this host or its link-local network",
        ],
        [
          "https://169.254.169.254/",
          "an address of this host or its link-local network",
        ],
        ["https://10.0.0.1/", "an address of a private network"],
        ["https://[fd00::1]/", "an address of a private network"],
      ];
      for (const [location, words] of locations) {
        all.registry.redirectBlobs(location);
        all.registry.requests.length = 0;
        const { code, status, message } = await all.hydrate();
        assertEquals([code, status], ["redirect_refused", 46], message);
        assertStringIncludes(message, words);
        const asked = all.registry.requests
          .filter((line) => line.includes("/blobs/"))
          .map((line) => line.split(" ")[0]);
        assertEquals(asked, [how === "by oras pull" ? "HEAD" : "GET"]);
      }
      assertEquals(all.reached, []);
      const hosts = new Set(all.tunnel.asked);
      assert(hosts.size === 1 && hosts.has(`${HOST}:443`));
    },
  });
}

Deno.test({
  name:
    "hydrate refuses the registry's redirect to this host after a mirror served wrong bytes",
  ...NEEDED,
  async fn() {
    await using all = await scene(MIB);
    await using mirror = await startBlobServer({
      bytes: new Uint8Array(MIB),
      answer: ({ request: { url } }) =>
        url.includes("/manifests/")
          ? new Response(null, { status: 404 })
          : undefined,
    });
    all.registry.redirectBlobs(`https://${all.service}/`);
    const { code, message } = await all.hydrate({
      TOOLSMITH_MIRRORS: `${HOST}=${mirror.origin}`,
    });
    assertEquals(mirror.requestedRanges.at(-1), `0-${MIB}`);
    assertEquals(code, "redirect_refused", message);
    const asked = all.registry.requests
      .filter((line) => line.includes("/blobs/"))
      .map((line) => line.split(" ")[0]);
    assertEquals([asked, all.reached], [["HEAD"], []]);
  },
});
