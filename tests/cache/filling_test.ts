import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { sweepStaging } from "../../lib/cache/_staging.ts";
import { cacheEntry, type CacheKey } from "../../lib/cache/entry.ts";
import { processEnvironment } from "../../lib/environment.ts";
import { failure } from "../support/failure.ts";
import { startScript } from "../support/script.ts";
import { namesIn } from "../support/directory.ts";
import { B, test } from "../support/images.ts";

/** A process that has begun to fill an entry. */
const FILL = `
  import { cacheEntry } from "/lib/cache/entry.ts";
  const [cache, image, sha256] = Deno.args;
  using held = await cacheEntry({ cache, image, sha256 }).lock();
  await using staging = await held.stage();
  await Deno.writeTextFile(staging.dir + "/image.qcow2", "partial");
  console.log("staged");
  await new Promise((done) => setTimeout(done, 600_000));
`;

async function fill({ cache, image, sha256 }: CacheKey) {
  const options = { args: [cache, image, sha256] };
  const script = await startScript(`${cache}-${sha256}.ts`, FILL, options);
  await script.says("staged");
  return script.child;
}

const stagings = async ({ cache, image }: CacheKey) =>
  (await namesIn(join(cache, image))).filter((name) => name.startsWith(".sta"));

test("what a killed process was filling is swept by the next, and not found before", async (key) => {
  await using child = await fill(key);
  assertEquals((await stagings(key)).length, 1);
  assertEquals(await cacheEntry(key).lookUp(), undefined);
  Deno.kill(child.pid, "SIGKILL");
  await child.ended;
  assertEquals((await stagings(key)).length, 1);
  assertEquals(await cacheEntry(key).lookUp(), undefined);
  (await cacheEntry(key).lock())[Symbol.dispose]();
  assertEquals(await stagings(key), []);
});

test("what a killed process was filling is swept by a neighbour, too", async (key) => {
  await using child = await fill({ ...key, sha256: B });
  Deno.kill(child.pid, "SIGKILL");
  await child.ended;
  (await cacheEntry(key).lock())[Symbol.dispose]();
  assertEquals(await stagings(key), []);
});

test("what a living process is filling is left alone", async (key) => {
  await using _child = await fill({ ...key, sha256: B });
  (await cacheEntry(key).lock())[Symbol.dispose]();
  await sweepStaging(key.cache, key.image, { env: processEnvironment });
  const [name] = await stagings(key);
  const part = join(key.cache, "demo", name, "image.qcow2");
  assertEquals(await Deno.readTextFile(part), "partial");
});

test("who waits for an entry gets it when its filler is killed", async (key) => {
  await using child = await fill(key);
  const waiting = Promise.withResolvers<void>();
  const mine = cacheEntry(key).lock({ onWait: waiting.resolve });
  await waiting.promise;
  Deno.kill(child.pid, "SIGKILL");
  using _lock = await mine;
  assertEquals(await stagings(key), []);
});

test("an abort ends the wait for an entry as cancelled", async (key) => {
  using _lock = await cacheEntry(key).lock();
  const abort = new AbortController();
  const { signal } = abort;
  await failure(
    "cancelled",
    () => cacheEntry(key).lock({ signal, onWait: () => abort.abort() }),
  );
});

test("a sweep that fails gives the lock back", async (key) => {
  const stale = join(key.cache, "demo", `.staging-${B}-0`);
  await Deno.mkdir(stale, { recursive: true });
  // Its lock cannot be asked for.
  await Deno.mkdir(cacheEntry({ ...key, sha256: B }).lockPath);
  await assertRejects(() => cacheEntry(key).lock());
  await Deno.remove(cacheEntry({ ...key, sha256: B }).lockPath);
  (await cacheEntry(key).lock())[Symbol.dispose]();
});
