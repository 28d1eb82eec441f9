/**
 * Fault injection: updates whose process is killed while it reads the base, copies,
 * or downloads. The next run goes on, and the image is right.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { listPartialImages } from "../../lib/cache/maintenance.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import {
  type RunningProcess,
  runProcess,
  spawnProcess,
} from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { BUNDLE_PATH, writeBundle } from "../../scripts/bundle.ts";
import { foundTools, requires } from "../support/parts.ts";
import { killUnlessEnded } from "../support/processes.ts";
import { startProxy } from "../support/proxy.ts";
import { seededRandom } from "../support/seeded_random.ts";
import { publishUpdatedImage } from "../support/updated_image.ts";
import { cleanEnvironment, jsonLines } from "../support/workspace.ts";

const REAL = requires("oras", "registry", "qemuImg");
/** Highest number of bytes that are lost with a killed connection. */
const LOST_BYTES = 256 * 1024;

/** A proxy before the registry, and a workspace to update in. */
async function makeSite() {
  await using undo = new AsyncDisposableStack();
  const image = undo.use(await publishUpdatedImage());
  const proxy = undo.use(startProxy(image.registry.host));
  const work = undo.use(await image.workspace(proxy.host));
  if (!await writeBundle()) throw new Error("The program is not bundled");
  const program = join(work.dir, "toolsmith.js");
  await Deno.copyFile(BUNDLE_PATH, program);
  const base = ["--base", image.older.path, "--json"];
  const options = {
    args: ["run", "-A", "--quiet", program, "hydrate", ...base],
    cwd: work.dir,
    env: { ...cleanEnvironment(), TOOLSMITH_ORAS: foundTools.oras! },
  };
  const blob = new RegExp(`^GET .*blobs/sha256:${image.newer.sha256}`);
  const cache = join(work.dir, ".toolsmith", "cache");
  const all = undo.move();
  return {
    ...{ image, proxy, cache, blob },
    start: () => spawnProcess(Deno.execPath(), options),
    /** Bytes of the image that were sent. */
    sent: () =>
      proxy.seen.filter(({ request }) => blob.test(request))
        .reduce((sum, { bytes }) => sum + bytes, 0),
    /** Runs to the end, and compares the image. */
    async complete() {
      const { stdout } = await runProcess(Deno.execPath(), options);
      const { last, events } = jsonLines(stdout);
      assertEquals(last.type, "result", stdout);
      const chunks = readFileChunks(last.path);
      assertEquals(await sha256OfChunks(chunks), image.newer.sha256);
      return events;
    },
    /** The partial download's bytes; 0 without one. */
    async presentBytes() {
      const [partial] = await listPartialImages(cache);
      return partial?.bytes ?? 0;
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

async function kill(child: RunningProcess) {
  killUnlessEnded(child.pid);
  await child.ended;
}

Deno.test({
  name:
    "hydrate resumes an update that was killed while it copied from the base",
  ...REAL,
  async fn() {
    await using site = await makeSite();
    const child = site.start();
    while (await site.presentBytes() === 0) await sleep(1);
    await kill(child);
    const present = await site.presentBytes();
    assert(present > 0);
    await site.complete();
    assert(site.sent() < site.image.size / 20, `${site.sent()}`);
  },
});

Deno.test({
  name: "hydrate resumes an update that was killed while it downloaded a gap",
  ...REAL,
  async fn() {
    await using site = await makeSite();
    const { proxy, image, blob } = site;
    proxy.faults.push({ match: blob, stallAfter: 50_000 });
    const child = site.start();
    const stalled = () =>
      proxy.seen.filter((it) => blob.test(it.request) && it.bytes >= 50_000);
    while (stalled().length < 3) await sleep(1);
    // A record that is just being written cannot be read.
    await kill(child);
    const before = await site.presentBytes();
    assert(before > image.size - 2 * image.changedBytes, `${before}`);
    proxy.faults.length = 0;
    const events = await site.complete();
    const start = events.find(({ type }) => type === "download_start");
    assert(start.resumed >= before);
  },
});

Deno.test({
  name:
    "hydrate, killed at 20 random moments of an update, leaves nothing or the complete image, and copies again what is missing",
  ...REAL,
  async fn() {
    await using site = await makeSite();
    const { image, proxy } = site;
    const random = seededRandom();
    let begun = performance.now();
    await site.complete();
    let duration = performance.now() - begun;
    await Deno.remove(site.cache, { recursive: true });
    proxy.seen.length = 0;
    const seen = { killed: 0, complete: 0 };
    for (let nth = 1; nth <= 20; nth++) {
      begun = performance.now();
      const child = site.start();
      const over = new AbortController();
      child.ended.then(() => over.abort());
      await sleep(random() * duration, over.signal).catch(() => {});
      await kill(child);
      const { code } = await child.ended;
      seen[code === 0 ? "complete" : "killed"]++;
      // Later runs find a warm host, or bytes that are there.
      if (code === 0) duration = Math.min(duration, performance.now() - begun);
      if (code !== 0 && nth % 4 !== 0) continue;
      await site.complete();
      const limit = 2 * image.changedBytes + 5 * LOST_BYTES * nth;
      assert(site.sent() < limit, `${site.sent()} bytes, kill ${nth}`);
      await Deno.remove(site.cache, { recursive: true });
    }
    console.log(seen);
    assert(seen.killed > 0, "each kill came too late");
  },
});
