/**
 * Hosts behind caches that are still empty: what docs/fleets.md promises.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { sleep } from "../../lib/system/time.ts";
import { startWire } from "../../scripts/bench/wire.ts";
import { startNginx } from "../support/nginx.ts";
import { needs } from "../support/parts.ts";
import { startRegistry } from "../support/registry.ts";
import { jsonLines, publishImage, workspace } from "../support/workspace.ts";

const MIB = 1024 * 1024;

/** An image in a registry, two tiers of caches before it, nginx before those. */
async function site() {
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startRegistry());
  // So slow that who goes away does so in the middle.
  const upstream = undo.use(startWire(registry.host, { rate: 40 * MIB }));
  const work = undo.use(await workspace());
  const { host } = upstream;
  await publishImage(registry, work, { bytes: 80 * MIB, host });
  const { size } = await Deno.stat(join(work.dir, "image.qcow2"));
  const far = undo.use(await startRegistry({ upstream: `http://${host}` }));
  const near = undo.use(await startRegistry({ upstream: far.url }));
  const nginx = undo.use(await startNginx(near.url));
  const all = undo.move();
  return {
    work,
    /** What a host with a cache of its own has in its environment. */
    host: (name: string) => ({
      TOOLSMITH_CACHE: join(work.dir, name),
      TOOLSMITH_MIRRORS: `${host}=${nginx.url}`,
    }),
    /** How often the registry has sent the image; manifests hardly count. */
    sent: () => upstream.received() / size,
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/** Hydrates on eight hosts at once: what becomes of each, and what fails. */
async function hydrateAll({ work, host }: Awaited<ReturnType<typeof site>>) {
  return await Promise.all(
    Array.from({ length: 8 }, async (_, at) => {
      const args = ["hydrate", "--json"];
      const { stdout } = await work.toolsmith(args, {
        env: host(`host-${at}`),
      });
      const { events, last } = jsonLines(stdout);
      const failed = events.filter(({ type }) =>
        type === "mirror_failed" || type === "ranges_unavailable"
      );
      return [last.outcome, ...failed.map(({ reason }) => reason)];
    }),
  );
}

const PULLED = Array(8).fill(["pulled"]);

Deno.test({
  name:
    "eight hosts at once cost the registry one image, where nginx stands before two tiers of cold caches",
  ...needs("oras", "registry", "qemuImg", "nginx"),
  async fn() {
    await using all = await site();
    assertEquals(await hydrateAll(all), PULLED);
    const sent = all.sent();
    assert(sent >= 1 && sent <= 1.2, `${sent} × the image`);
  },
});

Deno.test({
  name:
    "the host that fills the caches may go away: the others wait for the same bytes",
  ...needs("oras", "registry", "qemuImg", "nginx"),
  async fn() {
    await using all = await site();
    const leaving = new AbortController();
    const { signal } = leaving;
    const env = all.host("first");
    const first = all.work.toolsmith(["hydrate"], { env, signal });
    const gone = assertRejects(() => first, Error, "gone");
    while (all.sent() < 0.4) await sleep(5);
    leaving.abort(new Error("gone"));
    await gone;
    assert(all.sent() < 1, "it went too late");
    assertEquals(await hydrateAll(all), PULLED);
    const sent = all.sent();
    assert(sent >= 1 && sent <= 1.2, `${sent} × the image`);
  },
});
