/**
 * Where a registry of the internet sends a host for an image: to what this host
 * alone can reach.
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { issueCertificate } from "../support/certificates.ts";
import { startHostileRegistry } from "../support/hostile_registry.ts";
import { needs } from "../support/parts.ts";
import { startTunnel } from "../support/tunnel.ts";
import { jsonLines, workspace } from "../support/workspace.ts";

const HOST = "registry.example.com";
const MIB = 1024 * 1024;

/** A registry under a name of the internet, and a service of this host. */
async function scene(size: number) {
  await using undo = new AsyncDisposableStack();
  const work = undo.use(await workspace());
  const { certFile, keyFile, caFile } = await issueCertificate(
    work.dir,
    [HOST],
  );
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
    async hydrate() {
      const args = ["hydrate", "--json", "--retries", "0", "--ca-file", caFile];
      const options = { env: tunnel.env, permissions: ["-A"] };
      const { code, stdout } = await work.toolsmith(args, options);
      return { code, last: jsonLines(stdout).last };
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

for (
  const [how, size] of [["by ranges", 64 * MIB], ["by oras", MIB]] as const
) {
  Deno.test({
    name:
      `hydrate follows no redirect of a registry to a service of this host, ${how}`,
    ...needs("oras", "openssl"),
    async fn() {
      await using all = await scene(size);
      const locations: [string, string][] = [
        [`http://${all.service}/latest/meta-data`, "which is not HTTPS"],
        ["http://169.254.169.254/latest", "which is not HTTPS"],
        [`https://${all.service}/`, "an address of this host or its link"],
        ["https://169.254.169.254/", "an address of this host or its link"],
        ["https://10.0.0.1/", "an address of a private network"],
        ["https://[fd00::1]/", "an address of a private network"],
      ];
      for (const [location, words] of locations) {
        all.registry.redirectBlobs(location);
        all.registry.requests.length = 0;
        const { code, last } = await all.hydrate();
        assertEquals([last.code, code], ["redirect_refused", 46], last.message);
        assertStringIncludes(last.message, words);
        const asked = all.registry.requests
          .filter((line) => line.includes("/blobs/"))
          .map((line) => line.split(" ")[0]);
        assertEquals(asked, [how === "by oras" ? "HEAD" : "GET"]);
      }
      assertEquals(all.reached, []);
      const hosts = new Set(all.tunnel.asked);
      assert(hosts.size === 1 && hosts.has(`${HOST}:443`));
    },
  });
}
