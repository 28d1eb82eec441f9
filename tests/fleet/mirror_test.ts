/**
 * Hosts behind cold pull-through caches, as docs/fleets.md describes.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { startThrottledNetwork } from "../../scripts/bench/throttled_network.ts";
import { startNginx } from "../support/nginx.ts";
import { requires } from "../support/parts.ts";
import { startRegistry } from "../support/registry.ts";
import { jsonLines, publishImage, workspace } from "../support/workspace.ts";

const MIB = 1024 * 1024;

/** A registry with an image, behind two cache tiers and nginx. */
async function site() {
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startRegistry());
  const upstream = undo.use(
    startThrottledNetwork(registry.host, { rate: 40 * MIB }),
  );
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
    /** Environment of a host with its own cache. */
    host: (name: string) => ({
      TOOLSMITH_CACHE: join(work.dir, name),
      TOOLSMITH_MIRRORS: `${host}=${nginx.url}`,
    }),
    /** Bytes sent by the registry, as a multiple of the image. */
    sent: () => upstream.received() / size,
    /** Stalls the registry after it has sent this share of the image. */
    holdAt: (share: number) => upstream.holdAt(share * size),
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/** Hydrates on eight hosts at once; returns outcome and failures of each. */
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
    "hydrate on eight hosts at once downloads the image from the registry once, through nginx and two cold cache tiers",
  ...requires("oras", "registry", "qemuImg", "nginx"),
  async fn() {
    await using all = await site();
    assertEquals(await hydrateAll(all), PULLED);
    const sent = all.sent();
    assert(sent >= 1 && sent <= 1.2, `${sent} × the image`);
  },
});

Deno.test({
  name:
    "hydrate on eight hosts succeeds after the host whose download was filling the mirror caches aborts",
  ...requires("oras", "registry", "qemuImg", "nginx"),
  async fn() {
    await using all = await site();
    const leaving = new AbortController();
    const { signal } = leaving;
    const env = all.host("first");
    const hold = all.holdAt(0.4);
    const first = all.work.toolsmith(["hydrate"], { env, signal });
    const gone = assertRejects(() => first, Error, "gone");
    await hold.reached;
    leaving.abort(new Error("gone"));
    await gone;
    assert(all.sent() < 1, "it went too late");
    hold.release();
    assertEquals(await hydrateAll(all), PULLED);
    const sent = all.sent();
    assert(sent >= 1 && sent <= 1.2, `${sent} × the image`);
  },
});
