import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  hydrate,
  loadManifest,
  ToolsmithError,
  type ToolsmithEvent,
} from "../../mod.ts";
import { foundTools, requires } from "../support/parts.ts";
import { startProxy } from "../support/proxy.ts";
import { startRegistry } from "../support/registry.ts";
import { publishImage, workspace } from "../support/workspace.ts";

const REAL = requires("oras", "registry", "qemuImg");

Deno.test({
  name: "hydrate() uses the cache, env and onEvent options",
  ...REAL,
  async fn() {
    await using registry = await startRegistry();
    await using work = await workspace();
    const { sha256 } = await publishImage(registry, work);

    const events: ToolsmithEvent[] = [];
    const manifest = await loadManifest(undefined, {
      cwd: work.dir,
      env: new Map(),
    });
    const cache = `${work.dir}/elsewhere`;
    const env = new Map([["TOOLSMITH_ORAS", foundTools.oras!]]);
    const onEvent = (event: ToolsmithEvent) => events.push(event);
    const image = await hydrate(manifest, { cache, env, onEvent });
    assertEquals(image.outcome, "pulled");
    assertEquals(image.path, `${cache}/demo/${sha256}/image.qcow2`);
    assert(events.some(({ type }) => type === "checksum_verified"));

    const named = new Map([...env, [
      "TOOLSMITH_CACHE",
      `${work.dir}/third`,
    ]]);
    const third = await hydrate(manifest, { env: named });
    assertEquals(third.path, `${work.dir}/third/demo/${sha256}/image.qcow2`);
  },
});

Deno.test({
  name:
    "hydrate() stops when its signal is aborted and leaves no staging directory",
  ...REAL,
  async fn() {
    await using registry = await startRegistry();
    await using proxy = startProxy(registry.host, [
      { match: /^GET \S+\/blobs\//, stallAfter: 1000 },
    ]);
    await using work = await workspace();
    await publishImage(registry, work, { host: proxy.host });
    const manifest = await loadManifest(`${work.dir}/.toolsmith/tools.json`);

    const stop = new AbortController();
    const error = await assertRejects(
      () =>
        hydrate(manifest, {
          signal: stop.signal,
          env: new Map([["TOOLSMITH_ORAS", foundTools.oras!]]),
          onEvent({ type }) {
            if (type === "download_start") stop.abort();
          },
        }),
      ToolsmithError,
    );
    assertEquals(error.code, "cancelled");
    assertEquals(await work.cached(), []);
    const names = [...Deno.readDirSync(`${work.dir}/.toolsmith/cache/demo`)];
    assertEquals(names.filter(({ isDirectory }) => isDirectory), []);
  },
});
