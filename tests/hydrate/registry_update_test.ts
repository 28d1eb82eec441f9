/**
 * Updates from a real registry: the chunk index is found or not, and only what
 * changed is downloaded, or everything.
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import {
  CHUNK_INDEX,
  type ChunkIndex,
  findChunkIndex,
  formatChunkIndex,
} from "../../lib/delta/chunk_index.ts";
import { RECORD_BYTES } from "../../lib/delta/chunker.ts";
import { listCache } from "../../lib/cache/maintenance.ts";
import type { HydrateOptions } from "../../lib/hydrate/hydrate.ts";
import { registryEndpoint } from "../../lib/oci/endpoints.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { findAttachedFiles } from "../../lib/oci/referrers.ts";
import {
  type Digest,
  readFileChunks,
  sha256OfChunks,
  sha256ToDigest,
} from "../../lib/system/digest.ts";
import { runProcess } from "../../lib/system/process.ts";
import { foundTools, requires } from "../support/parts.ts";
import { type ProxyFault, startProxy } from "../support/proxy.ts";
import { startRegistry } from "../support/registry.ts";
import { hydrateWorkspace } from "../support/registry_hydrate.ts";
import { scaleClock } from "../support/timers.ts";
import {
  publishUpdatedImage,
  type UpdatedImage,
} from "../support/updated_image.ts";

const REAL = requires("oras", "registry", "qemuImg");
const REFERRERS = /^GET \S+\/referrers\//;
const FALLBACK_TAG = /^GET \S+\/manifests\/sha256-/;

let image: UpdatedImage;
Deno.test.beforeAll(async () => {
  if (!REAL.ignore) image = await publishUpdatedImage();
});
Deno.test.afterAll(async () => {
  await image?.[Symbol.asyncDispose]();
});

/** The path of the newer version's blob, which no other request has. */
const blob = () => new RegExp(`^GET .*blobs/sha256:${image.newer.sha256}`);

/** A proxy before the registry, and a workspace that names the newer version there. */
async function updateSite(faults: ProxyFault[] = []) {
  await using undo = new AsyncDisposableStack();
  const proxy = undo.use(startProxy(image.registry.host, faults));
  const work = undo.use(await image.workspace(proxy.host));
  const all = undo.move();
  return {
    ...{ proxy, work },
    /** Hydrates with the older version as the base, and compares the result. */
    async update(options: HydrateOptions = {}) {
      const base = image.older.path;
      const run = await hydrateWorkspace(work.dir, { base, ...options });
      if (run.error) throw run.error;
      const chunks = readFileChunks(run.result!.path);
      assertEquals(await sha256OfChunks(chunks), image.newer.sha256);
      return run;
    },
    /** The responses with bytes of the image. */
    responses: () =>
      proxy.seen.filter(({ request, status }) =>
        blob().test(request) && status < 300
      ),
    sent(): number {
      return this.responses().reduce((sum, { bytes }) => sum + bytes, 0);
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/** Attaches a file to the newer version, and returns a function that deletes it. */
async function attach(bytes: Uint8Array<ArrayBuffer>) {
  const path = join(image.dir, "other.chunks");
  await Deno.writeFile(path, bytes);
  const { host } = image.registry;
  const reference = `${host}/owner/image@${image.newer.digest}`;
  const type = ["--artifact-type", CHUNK_INDEX.type];
  const { code, stdout, stderr } = await runProcess(foundTools.oras!, {
    cwd: image.dir,
    args: ["attach", "--plain-http", "--format", "json", ...type, reference]
      .concat(`other.chunks:${CHUNK_INDEX.type}`),
  });
  assertEquals(code, 0, stderr);
  return JSON.parse(stdout).digest as string;
}

/** The index that publish() has attached. */
function attachedIndex(): Promise<ChunkIndex> {
  const { host } = image.registry;
  const reference = parseReference(`${host}/owner/image:2.0`);
  const endpoints = {
    mirrors: [],
    registry: registryEndpoint(reference, {}),
  };
  const digest = image.newer.digest as Digest;
  return findChunkIndex(findAttachedFiles(endpoints, digest, CHUNK_INDEX), {
    size: image.size,
    digest: sha256ToDigest(image.newer.sha256),
  });
}

/** Attaches an index, and returns a fault so that clients find no other. */
async function attachLyingIndex(): Promise<ProxyFault> {
  const index = await attachedIndex();
  const records = index.records.slice();
  // Swaps the first two chunks, so that the lengths still add up.
  const first = records.slice(0, RECORD_BYTES);
  records.copyWithin(0, RECORD_BYTES, 2 * RECORD_BYTES);
  records.set(first, RECORD_BYTES);
  const digest = await attach(await formatChunkIndex({ ...index, records }));
  const list = new TextEncoder().encode(JSON.stringify({
    manifests: [{ artifactType: CHUNK_INDEX.type, digest, size: 1 }],
  }));
  return { match: FALLBACK_TAG, replace: () => list };
}

Deno.test({
  name: "hydrate downloads only what changed since the given base",
  ...REAL,
  async fn() {
    await using site = await updateSite();
    // Otherwise a slow connection's range is requested again, and its bytes are lost.
    using _clock = scaleClock(0.001);
    const { of, result } = await site.update();
    const [{ bytes, total, from }] = of("update_start");
    assertEquals([total, from], [image.size, "image.qcow2"]);
    assert(bytes >= image.changedBytes, `${bytes}`);
    assert(bytes < 3 * (100_000 + 2 * 64 * 1024), `${bytes}`);
    assertEquals(site.sent(), bytes);
    assertEquals(site.responses().length, 3);
    assertEquals(of("download_start")[0].resumed, total - bytes);
    assertEquals(of("download_end")[0].bytes, bytes);
    assertEquals(of("update_declined"), []);
    assertEquals(result?.outcome, "pulled");
  },
});

Deno.test({
  name:
    "hydrate updates from the cached version of the same name over a slow link, and cache ls shows it",
  ...REAL,
  async fn() {
    await using site = await updateSite();
    const { work, proxy } = site;
    await image.select(work, "1.0");
    assertEquals((await hydrateWorkspace(work.dir)).error, undefined);
    await image.select(work, "2.0", proxy.host);
    // The first response stalls, so that the measured rate is low.
    const stalled = { match: blob(), stallAfter: 1000, times: 1 };
    proxy.faults.push(stalled);
    const { of } = await site.update({ base: undefined });
    assertEquals(of("update_declined"), []);
    const [{ bytes, from }] = of("update_start");
    assertEquals(from, "1.0");
    assert(bytes < image.size / 50, `${bytes}`);
    const cache = join(work.dir, ".toolsmith", "cache");
    const [entry] = await listCache(cache);
    assertEquals(entry.update, { from: "1.0", bytes, total: image.size });
    const { stdout } = await work.toolsmith(["cache", "ls"]);
    assertStringIncludes(stdout, "KiB downloaded, the rest from 1.0");
  },
});

Deno.test({
  name: "hydrate finds the chunk index through the referrers API",
  ...REAL,
  async fn() {
    const tag = image.newer.digest.replace(":", "-");
    await using site = await updateSite([
      { match: REFERRERS, askFor: `/v2/owner/image/manifests/${tag}` },
      { match: FALLBACK_TAG, status: 404 },
    ]);
    assertEquals((await site.update()).of("update_start").length, 1);
  },
});

const page = new TextEncoder().encode("<!doctype html><title>Hi</title>");
const missing: [string, ProxyFault[]][] = [
  ["answers 404", [{ match: FALLBACK_TAG, status: 404 }]],
  ["answers 500", [
    { match: REFERRERS, status: 500 },
    { match: FALLBACK_TAG, status: 500 },
  ]],
  ["answers with a web page", [{ match: FALLBACK_TAG, replace: () => page }]],
  ["answers with a list of something else", [{
    match: FALLBACK_TAG,
    replace: () => new TextEncoder().encode('{"manifests":[{},7,null]}'),
  }]],
  ["cuts the index", [{ match: FALLBACK_TAG, cutAfter: 20 }]],
];
for (const [what, faults] of missing) {
  Deno.test({
    name:
      `hydrate downloads the whole image if the registry ${what} when asked for the chunk index`,
    ...REAL,
    async fn() {
      await using site = await updateSite(faults);
      const { of } = await site.update();
      assertEquals(of("update_start"), []);
      assertEquals(of("update_declined").map(({ reason }) => reason), [
        "no chunk index was found",
      ]);
      assert(site.sent() >= image.size);
    },
  });
}

Deno.test({
  name: "findAttachedFiles() throws the signal's reason",
  ...REAL,
  async fn() {
    const reason = new Error("stop");
    const signal = AbortSignal.abort(reason);
    const { host } = image.registry;
    const reference = parseReference(`${host}/owner/image:2.0`);
    const registry = registryEndpoint(reference, { signal });
    const digest = image.newer.digest as Digest;
    const endpoints = { mirrors: [], registry };
    const files = findAttachedFiles(endpoints, digest, CHUNK_INDEX);
    const error = await files.next().then(() => undefined, (error) => error);
    assertEquals(error, reason);
  },
});

Deno.test({
  name: "hydrate skips a malformed chunk index that is attached, too",
  ...REAL,
  async fn() {
    await attach(crypto.getRandomValues(new Uint8Array(1000)));
    await using site = await updateSite();
    assertEquals((await site.update()).of("update_start").length, 1);
  },
});

Deno.test({
  name:
    "hydrate downloads the whole image after an update from a lying chunk index",
  ...REAL,
  async fn() {
    await using site = await updateSite([await attachLyingIndex()]);
    const { of } = await site.update();
    assertEquals(of("update_start").length, 1);
    const [{ reason }] = of("update_declined");
    assertStringIncludes(
      reason,
      "the downloaded bytes have the digest sha256:",
    );
    assertEquals(of("ranges_unavailable"), []);
    assertEquals(of("download_start").map(({ resumed }) => resumed > 0), [
      true,
      false,
    ]);
    const cache = join(site.work.dir, ".toolsmith", "cache");
    assertEquals((await listCache(cache))[0].update, undefined);
  },
});

Deno.test({
  name:
    "hydrate downloads the whole image after an interrupted update copied wrong bytes and the index is gone",
  ...REAL,
  async fn() {
    await using site = await updateSite([
      await attachLyingIndex(),
      { match: blob(), cutAfter: 50_000, after: 1 },
    ]);
    const base = image.older.path;
    const first = await hydrateWorkspace(site.work.dir, { base, retries: 0 });
    assertEquals(first.error?.code, "transfer_interrupted");
    assertEquals(first.of("update_start").length, 1);
    site.proxy.faults.length = 0;
    site.proxy.faults.push({ match: FALLBACK_TAG, status: 404 });
    const { of } = await site.update();
    assertEquals(of("update_start"), []);
    assert(of("download_start")[0].resumed > 0);
    assertStringIncludes(of("ranges_unavailable")[0].reason, "digest sha256:");
  },
});

Deno.test({
  name:
    "hydrate falls back to oras pull if the registry refuses ranges after an update has begun",
  ...REAL,
  async fn() {
    await using site = await updateSite([
      { match: blob(), status: 416, times: 1 },
    ]);
    const { of } = await site.update();
    assertEquals(of("update_start").length, 1);
    assertEquals(of("ranges_unavailable").length, 1);
    const cache = join(site.work.dir, ".toolsmith", "cache");
    assertEquals((await listCache(cache))[0].update, undefined);
  },
});

Deno.test({
  name:
    "hydrate updates through a pull-through cache that sends the whole image first",
  ...REAL,
  async fn() {
    await using cache = await startRegistry({ upstream: image.registry.url });
    await using work = await image.workspace(cache.host);
    const run = await hydrateWorkspace(work.dir, { base: image.older.path });
    assertEquals(run.error, undefined);
    assertEquals(run.of("update_start").length, 1);
    assertEquals(run.of("update_declined"), []);
  },
});

Deno.test({
  name:
    "hydrate resumes an interrupted update without copying or downloading twice",
  ...REAL,
  async fn() {
    await using site = await updateSite([
      { match: blob(), cutAfter: 50_000, after: 2 },
    ]);
    // Otherwise a slow connection's range is requested again, and its bytes are lost.
    using _clock = scaleClock(0.001);
    const base = image.older.path;
    const { dir } = site.work;
    const first = await hydrateWorkspace(dir, {
      ...{ base, retries: 0 },
      // The request that is cut follows one that has written its bytes.
      connections: 2,
    });
    assertEquals(first.error?.code, "transfer_interrupted");
    const sent = site.sent();
    // The other connection's bytes may not have been written, either.
    const lost = 50_000 + Math.max(...site.responses().map((it) => it.bytes));
    site.proxy.faults.length = 0;
    const { of } = await site.update();
    const [{ bytes }] = first.of("update_start");
    assert(of("update_start")[0].bytes < bytes);
    assert(site.sent() <= bytes + lost, `${sent} + ${site.sent()}`);
  },
});
