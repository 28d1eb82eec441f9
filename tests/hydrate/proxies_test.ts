/** Proxy variables: Toolsmith and oras interpret them the same way. */
import { assertEquals, assertMatch } from "@std/assert";
import { requires } from "../support/parts.ts";
import { type FaultyProxy, startProxy } from "../support/proxy.ts";
import { startRegistry } from "../support/registry.ts";
import { startTunnel } from "../support/tunnel.ts";
import { waitUntil } from "../support/wait_until.ts";
import { jsonLines, publishImage, workspace } from "../support/workspace.ts";

const REAL = requires("oras", "registry", "qemuImg");
/** From this size on, hydrate uses range requests. */
const LARGE = 64 * 1024 * 1024;

/** Nothing listens there, unlike at a port that was free a moment ago. */
const DEAD_PROXY = "http://127.0.0.1:2";

/** The distinct kinds of requests that a host received. */
const asked = ({ seen }: FaultyProxy) =>
  [
    ...new Set(seen.map(({ request, status }) => {
      const [, kind] = /\/v2\/owner\/image\/(\w+)\//.exec(request) ?? [];
      return `${kind} ${status}`;
    })),
  ].sort();

const ALL = ["blobs 206", "manifests 200"];

Deno.test({
  name: "hydrate applies Go's proxy rules to manifest and range requests",
  // Only on Linux is 0.0.0.0 this host under a non-loopback address.
  ignore: REAL.ignore || Deno.build.os !== "linux",
  async fn(t) {
    await using registry = await startRegistry();
    await using front = startProxy(registry.host);
    await using proxy = startProxy(front.host);
    await using work = await workspace();
    const port = front.host.split(":")[1];
    const far = `0.0.0.0:${port}`;
    const { sha256 } = await publishImage(registry, work, {
      bytes: LARGE,
      host: far,
    });
    const all = {
      HTTP_PROXY: DEAD_PROXY,
      HTTPS_PROXY: DEAD_PROXY,
      http_proxy: DEAD_PROXY,
    };
    const cases: [string, Record<string, string>, string?][] = [
      ["NO_PROXY=*", { ...all, NO_PROXY: "*" }],
      ["NO_PROXY=HOST:PORT", { ...all, NO_PROXY: ` x.test, ${far}` }],
      ["no_proxy=CIDR", { ...all, no_proxy: "0.0.0.0/8" }],
      ["ALL_PROXY alone", { ALL_PROXY: DEAD_PROXY, all_proxy: DEAD_PROXY }],
      ["a loopback registry", all, front.host],
    ];
    const hydrate = async (env: Record<string, string>, host = far) => {
      front.seen.length = proxy.seen.length = 0;
      const qcow2 = `oci://${host}/owner/image:1.0`;
      await work.manifest({ qcow2, qcow2_sha256: sha256 });
      const { stdout } = await work.toolsmith(
        ["hydrate", "--json", "--force", "--plain-http", "--retries", "0"],
        { env },
      );
      const { last, events } = jsonLines(stdout);
      assertEquals(last.outcome, "pulled", stdout);
      // A slow response to a range that another connection took over may still come.
      await waitUntil(
        "a response to each request",
        () =>
          [front, proxy].every(({ seen }) =>
            seen.every(({ status }) => status > 0)
          ),
      );
      assertEquals(
        events.filter(({ type }) => type === "ranges_unavailable"),
        [],
      );
      assertEquals(asked(front), ALL);
    };
    for (const [name, env, host] of cases) {
      await t.step(
        `hydrate connects directly with ${name}`,
        () => hydrate(env, host),
      );
    }
    await t.step("hydrate connects through HTTP_PROXY", async () => {
      const address = `http://${proxy.host}`;
      await hydrate({ http_proxy: address, NO_PROXY: `${far}0, x.test` });
      assertEquals(asked(proxy), ALL);
      assertEquals(proxy.seen.length, front.seen.length);
    });
  },
});

Deno.test({
  name: "hydrate reaches a mirror through HTTPS_PROXY",
  ...requires("oras", "registry", "qemuImg", "openssl"),
  async fn() {
    const names = ["cache.test", "far.test"];
    await using registry = await startRegistry({ tls: true, names });
    const { host, caFile } = registry;
    await using tunnel = startTunnel({ "cache.test:443": host });
    await using work = await workspace();
    await publishImage(registry, work, { host: "far.test" });
    const { stdout } = await work.toolsmith(
      ["hydrate", "--json", "--retries", "0", "--ca-file", caFile!],
      {
        env: {
          ...tunnel.env,
          ALL_PROXY: DEAD_PROXY,
          TOOLSMITH_REGISTRY_CONFIG: await certsDir(work.dir, caFile!),
        },
      },
    );
    assertEquals(jsonLines(stdout).last.outcome, "pulled", stdout);
    assertEquals(new Set(tunnel.asked), new Set(["cache.test:443"]));
  },
});

/** A containerd configuration of a mirror with its own certificate authority. */
async function certsDir(dir: string, caFile: string): Promise<string> {
  const path = `${dir}/certs.d/far.test`;
  await Deno.mkdir(path, { recursive: true });
  await Deno.writeTextFile(
    `${path}/hosts.toml`,
    `[host."https://cache.test"]\ncapabilities = ["pull", "resolve"]\nca = "${caFile}"\n`,
  );
  return `${dir}/certs.d`;
}

Deno.test({
  name: "hydrate names an unreachable proxy in the error",
  async fn() {
    await using work = await workspace();
    await work.manifest({
      qcow2: "https://far.test/a.qcow2",
      qcow2_sha256: "0".repeat(64),
    });
    const { stderr, code } = await work.toolsmith(
      ["hydrate", "--retries", "0"],
      { env: { HTTPS_PROXY: DEAD_PROXY } },
    );
    assertEquals(code, 37, stderr);
    assertMatch(
      stderr,
      /Cannot download https:\/\/far\.test\/a\.qcow2 through the proxy 127\.0\.0\.1:\d+: connection failed/,
    );
  },
});

Deno.test({
  name:
    "hydrate falls back to `oras pull` when only oras trusts the registry's certificate",
  ...requires("oras", "registry", "qemuImg", "openssl"),
  async fn() {
    const names = ["far.test"];
    await using registry = await startRegistry({ tls: true, names });
    await using tunnel = startTunnel({ "far.test:443": registry.host });
    await using work = await workspace();
    await publishImage(registry, work, { bytes: LARGE, host: "far.test" });
    // Go reads the system's certificate authorities, Deno has its own.
    const env = { ...tunnel.env, SSL_CERT_FILE: registry.caFile! };
    const { stdout } = await work.toolsmith(["hydrate", "--json"], { env });
    const { events, last } = jsonLines(stdout);
    assertEquals(last.outcome, "pulled", stdout);
    assertEquals(events.filter(({ type }) => type === "retry"), []);
    const [{ reason }] = events.filter(({ type }) =>
      type === "ranges_unavailable"
    );
    assertMatch(reason, /TLS connection not trusted/);
  },
});
