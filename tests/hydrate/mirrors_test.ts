import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import type { Environment } from "../../lib/environment.ts";
import type { HydrateOptions } from "../../lib/hydrate/hydrate.ts";
import { init } from "../../lib/hydrate/init.ts";
import { orIfNotFound } from "../../lib/system/files.ts";
import { temporaryDir } from "../support/directory.ts";
import {
  hydrateWorkspace,
  publishedImageOfFile,
} from "../support/registry_hydrate.ts";
import { requires } from "../support/parts.ts";
import { type FaultyProxy, startProxy } from "../support/proxy.ts";
import { PASSWORD, startRegistry, USERNAME } from "../support/registry.ts";
import { holdTimers, scaleClock } from "../support/timers.ts";
import { waitUntil } from "../support/wait_until.ts";
import { jsonLines } from "../support/workspace.ts";

const REAL = requires("oras", "registry", "qemuImg");
const MIB = 1024 * 1024;
const IMAGE = /^GET \S+\/blobs\//;

const bytesOf = ({ seen }: FaultyProxy) =>
  seen.filter(({ request }) => IMAGE.test(request))
    .reduce((sum, { bytes }) => sum + bytes, 0);

const image = publishedImageOfFile(64 * MIB, REAL.ignore);

/** An image in a registry behind a proxy, and a workspace that names it. */
async function site() {
  await using undo = new AsyncDisposableStack();
  const { registry, size, sha256, ...published } = image();
  const upstream = undo.use(startProxy(registry.host));
  const { host } = upstream;
  const work = undo.use(await published.workspace(host));
  const all = undo.move();
  return {
    registry,
    upstream,
    work,
    size,
    sha256,
    /** Runs hydrate with force and these mirrors. */
    async hydrate(mirrors: string[], options: HydrateOptions = {}) {
      const text = mirrors.map((mirror) => `${host}=${mirror}`).join(",");
      const env: Environment = {
        get: (name) => name === "TOOLSMITH_MIRRORS" ? text : Deno.env.get(name),
      };
      const { result, error, of } = await hydrateWorkspace(work.dir, {
        ...{ force: true, retries: 0, env },
        ...options,
      });
      assertEquals(result?.outcome, "pulled", error?.message);
      return of("mirror_failed").map(({ reason }) => reason);
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

Deno.test({
  name:
    "hydrate downloads through two chained pull-through caches, cold and warm",
  ...REAL,
  async fn() {
    await using all = await site();
    await using far = await startRegistry({
      upstream: `http://${all.upstream.host}`,
    });
    await using near = await startRegistry({ upstream: far.url });
    await using mirror = startProxy(near.host);
    assertEquals(await all.hydrate([`http://${mirror.host}`]), []);
    assert(bytesOf(mirror) <= all.size * 1.1, "the whole came more than once");
    assertMatch(
      mirror.seen[0].request,
      new RegExp(
        `/v2/owner/image/manifests/1.0\\?ns=${
          encodeURIComponent(all.upstream.host)
        }$`,
      ),
    );
    // The caches store blobs in the background: last a link, first as an empty file.
    const link =
      `${near.storage}/docker/registry/v2/repositories/owner/image/_layers/sha256/${all.sha256}/link`;
    await waitUntil(
      "the blob's link in the cache",
      async () =>
        await orIfNotFound(Deno.readTextFile(link)) === `sha256:${all.sha256}`,
    );
    all.upstream.seen.length = mirror.seen.length = 0;
    assertEquals(await all.hydrate([`http://${mirror.host}`]), []);
    assertEquals(bytesOf(all.upstream), 0);
    assert(mirror.seen.filter(({ status }) => status === 206).length >= 4);
  },
});

Deno.test({
  name: "hydrate skips a mirror that fails, stalls or serves wrong bytes",
  ...REAL,
  async fn(t) {
    await using all = await site();
    await using copy = startProxy(all.registry.host);
    const mirrors = [`http://${copy.host}`];
    const faults = async (...faults: typeof copy.faults) => {
      copy.faults.splice(0, Infinity, ...faults);
      all.upstream.seen.length = 0;
      return await all.hydrate(mirrors);
    };
    await t.step(
      "hydrate downloads the rest from the registry when the mirror fails",
      async () => {
        const failed = await faults({ match: IMAGE, after: 8, status: 503 });
        assertEquals(failed.length, 1);
        assert(bytesOf(all.upstream) <= all.size - 4 * MIB);
      },
    );
    await t.step(
      "hydrate requests a range again when the mirror withholds its response",
      async () => {
        // The clock runs faster until another connection requests the range.
        using _clock = scaleClock(10);
        const failed = await faults(
          { match: IMAGE, after: 3, times: 1, hang: true },
        );
        assertEquals(failed, []);
        assertEquals(bytesOf(all.upstream), 0);
      },
    );
    await t.step(
      "hydrate uses the registry when the mirror never responds",
      async () => {
        const stallTimeoutMs = 123_456;
        using timers = holdTimers(stallTimeoutMs);
        copy.seen.length = 0;
        let silent = 0;
        const expiring = setInterval(() => {
          if (copy.seen.length > silent) timers.expire();
          silent = copy.seen.length;
        }, 5);
        copy.faults.splice(0, Infinity, { match: /./, hang: true });
        const failed = await all.hydrate(mirrors, { stallTimeoutMs })
          .finally(() => clearInterval(expiring));
        assertEquals(failed.length, 2);
        for (const reason of failed) assertMatch(reason, /no progress/);
      },
    );
    await t.step(
      "hydrate uses the registry when the mirror answers 404",
      async () => {
        const [manifest, image] = await faults({
          match: /\/v2\//,
          status: 404,
        });
        assertMatch(manifest, /answered 404/);
        assertMatch(image, /answered 404/);
      },
    );
    await t.step(
      "hydrate uses the registry when the mirror serves another manifest",
      async () => {
        const [failed] = await faults({
          match: /\/manifests\//,
          replace: () => new TextEncoder().encode('{"schemaVersion":2}'),
        });
        assertMatch(failed, /manifest|payload/);
      },
    );
    await t.step(
      "hydrate uses the registry when the mirror serves wrong bytes",
      async () => {
        await faults({
          match: IMAGE,
          replace: (body) => {
            body[body.length >> 1] ^= 1;
            return body;
          },
        });
      },
    );
    await t.step(
      "hydrate uses the registry when no mirror is reachable",
      async () => {
        const nowhere = ["http://127.0.0.1:1", "http://nowhere.invalid"];
        assertEquals((await all.hydrate(nowhere)).length, 4);
      },
    );
  },
});

Deno.test({
  name: "hydrate never sends a registry's credentials to its mirror",
  ...REAL,
  async fn() {
    await using all = await site();
    const sent: (string | null)[] = [];
    await using mirror = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen: () => {} },
      ({ headers }) => {
        sent.push(headers.get("authorization"));
        return new Response(null, {
          status: 401,
          headers: { "www-authenticate": 'Basic realm="x"' },
        });
      },
    );
    const docker = join(all.work.dir, "docker");
    await Deno.mkdir(docker);
    const auth = btoa(`${USERNAME}:${PASSWORD}`);
    const auths = { [all.upstream.host]: { auth } };
    await Deno.writeTextFile(
      join(docker, "config.json"),
      JSON.stringify({ auths }),
    );
    const { stdout } = await all.work.toolsmith(["hydrate", "--json"], {
      env: {
        DOCKER_CONFIG: docker,
        TOOLSMITH_MIRRORS:
          `${all.upstream.host}=http://127.0.0.1:${mirror.addr.port}`,
      },
    });
    assertEquals(jsonLines(stdout).last.outcome, "pulled");
    assertEquals(sent, [null, null]);
  },
});

Deno.test({
  name: "init asks a mirror only for an image whose digest is given",
  ...REAL,
  async fn() {
    const { registry, sha256 } = image();
    await using mirror = startProxy(registry.host);
    await using dir = await temporaryDir();
    const mirrors = `${registry.host}=http://${mirror.host}`;
    const env: Environment = {
      get: (name) =>
        name === "TOOLSMITH_MIRRORS" ? mirrors : Deno.env.get(name),
    };
    const ref = `${registry.host}/owner/image:1.0`;
    const options = { ref, cwd: dir.path, env };
    assertEquals((await init(options)).manifest.image.sha256, sha256);
    assertEquals(mirror.seen, []);
    await init({ ...options, sha256, update: true });
    assertEquals(mirror.seen.length, 1);
  },
});
