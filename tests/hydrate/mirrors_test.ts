import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { needs } from "../support/parts.ts";
import { type FaultyProxy, startProxy } from "../support/proxy.ts";
import { PASSWORD, startRegistry, USERNAME } from "../support/registry.ts";
import { jsonLines, publishImage, workspace } from "../support/workspace.ts";

const REAL = needs("oras", "registry", "qemuImg");
const MIB = 1024 * 1024;
const IMAGE = /^GET \S+\/blobs\//;

const bytesOf = ({ seen }: FaultyProxy) =>
  seen.filter(({ request }) => IMAGE.test(request))
    .reduce((sum, { bytes }) => sum + bytes, 0);

/** An image in a registry behind a proxy, and a workspace that names it. */
async function site(bytes: number) {
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startRegistry());
  const upstream = undo.use(startProxy(registry.host));
  const work = undo.use(await workspace());
  const { host } = upstream;
  await publishImage(registry, work, { bytes, host });
  const { size } = await Deno.stat(join(work.dir, "image.qcow2"));
  const all = undo.move();
  return {
    registry,
    upstream,
    work,
    size,
    /** Hydrates anew, with these mirrors. */
    async hydrate(mirrors: string[], args: string[] = []) {
      const text = mirrors.map((mirror) => `${host}=${mirror}`).join(",");
      const output = await work.toolsmith(
        ["hydrate", "--json", "--force", ...args],
        { env: { TOOLSMITH_MIRRORS: text } },
      );
      const lines = jsonLines(output.stdout);
      const failed = lines.events
        .filter(({ type }) => type === "mirror_failed")
        .map(({ reason }) => reason);
      return { ...lines, failed };
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

Deno.test({
  name:
    "two tiers of pull-through caches serve manifest and image, cold and warm",
  ...REAL,
  async fn() {
    await using all = await site(80 * MIB);
    await using far = await startRegistry({
      upstream: `http://${all.upstream.host}`,
    });
    await using near = await startRegistry({ upstream: far.url });
    await using mirror = startProxy(near.host);
    const cold = await all.hydrate([`http://${mirror.host}`]);
    assertEquals([cold.last.outcome, cold.failed], ["pulled", []]);
    assert(bytesOf(mirror) <= all.size * 1.1, "the whole came more than once");
    assertMatch(
      mirror.seen[0].request,
      new RegExp(
        `/v2/owner/image/manifests/1.0\\?ns=${
          encodeURIComponent(all.upstream.host)
        }$`,
      ),
    );
    // The caches store what they pass on in the background.
    await new Promise((done) => setTimeout(done, 2000));
    all.upstream.seen.length = mirror.seen.length = 0;
    const warm = await all.hydrate([`http://${mirror.host}`]);
    assertEquals([warm.last.outcome, warm.failed], ["pulled", []]);
    assertEquals(bytesOf(all.upstream), 0);
    assert(mirror.seen.filter(({ status }) => status === 206).length >= 4);
  },
});

Deno.test({
  name: "a mirror that fails, lies or breaks in mid-image costs nothing",
  ...REAL,
  async fn(t) {
    await using all = await site(80 * MIB);
    await using copy = startProxy(all.registry.host);
    const mirrors = [`http://${copy.host}`];
    const faults = async (...faults: typeof copy.faults) => {
      copy.faults.splice(0, Infinity, ...faults);
      all.upstream.seen.length = 0;
      const { last, failed } = await all.hydrate(mirrors, ["--retries", "0"]);
      assertEquals(last.outcome, "pulled", last.message);
      return failed;
    };
    await t.step("it breaks: the registry goes on with the rest", async () => {
      const failed = await faults({ match: IMAGE, after: 8, status: 503 });
      assertEquals(failed.length, 1);
      assert(bytesOf(all.upstream) <= all.size - 4 * MIB);
    });
    await t.step("it withholds the headers of one range", async () => {
      const failed = await faults(
        { match: IMAGE, after: 3, times: 1, hang: true },
      );
      assertEquals(failed, []);
      assertEquals(bytesOf(all.upstream), 0);
    });
    await t.step("it answers nothing: the registry is asked", async () => {
      copy.faults.splice(0, Infinity, { match: /./, hang: true });
      const { last, failed } = await all.hydrate(
        mirrors,
        ["--retries", "0", "--stall-timeout", "1"],
      );
      assertEquals([last.outcome, failed.length], ["pulled", 2], last.message);
      for (const reason of failed) assertMatch(reason, /nothing arrived/);
    });
    await t.step("it does not have the image", async () => {
      const [manifest, image] = await faults({ match: /\/v2\//, status: 404 });
      assertMatch(manifest, /answers 404/);
      assertMatch(image, /answers 404/);
    });
    await t.step("it sends another manifest", async () => {
      const [failed] = await faults({
        match: /\/manifests\//,
        replace: () => new TextEncoder().encode('{"schemaVersion":2}'),
      });
      assertMatch(failed, /manifest|payload/);
    });
    await t.step("it sends other bytes of the right length", async () => {
      await faults({
        match: IMAGE,
        replace: (body) => {
          body[body.length >> 1] ^= 1;
          return body;
        },
      });
    });
    await t.step("it is not there", async () => {
      const { last, failed } = await all.hydrate(
        ["http://127.0.0.1:1", "http://nowhere.invalid"],
        ["--retries", "0"],
      );
      assertEquals([last.outcome, failed.length], ["pulled", 4]);
    });
  },
});

Deno.test({
  name: "a registry's credentials never go to its mirror",
  ...REAL,
  async fn() {
    await using all = await site(MIB);
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
