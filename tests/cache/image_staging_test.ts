import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { removeStaleStagingOfImage } from "../../lib/cache/_image_staging.ts";
import { cacheEntryHandle, type CacheKey } from "../../lib/cache/entry.ts";
import { processEnvironment } from "../../lib/environment.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { startScript } from "../support/script.ts";
import { namesIn } from "../support/directory.ts";
import { B, testWithCache } from "../support/images.ts";

/** A process that holds an entry's lock and a staging directory. */
const FILL = `
  import { cacheEntryHandle } from "/lib/cache/entry.ts";
  const [cache, image, sha256] = Deno.args;
  using locked = await cacheEntryHandle({ cache, image, sha256 }).lock();
  await using staging = await locked.createOrResumeStaging();
  await Deno.writeTextFile(staging.dir + "/image.qcow2", "partial");
  console.log("staged");
  await new Promise((done) => setTimeout(done, 600_000));
`;

async function fill({ cache, image, sha256 }: CacheKey) {
  const options = { args: [cache, image, sha256] };
  const script = await startScript(`${cache}-${sha256}.ts`, FILL, options);
  await script.prints("staged");
  return script.child;
}

const stagings = async ({ cache, image }: CacheKey) =>
  (await namesIn(join(cache, image))).filter((name) => name.startsWith(".sta"));

testWithCache(
  "CacheEntryHandle.lock() removes the staging directory of a killed process, which lookUpImage() never finds",
  async (key) => {
    await using child = await fill(key);
    assertEquals((await stagings(key)).length, 1);
    assertEquals(await cacheEntryHandle(key).lookUpImage(), undefined);
    Deno.kill(child.pid, "SIGKILL");
    await child.ended;
    assertEquals((await stagings(key)).length, 1);
    assertEquals(await cacheEntryHandle(key).lookUpImage(), undefined);
    (await cacheEntryHandle(key).lock())[Symbol.dispose]();
    assertEquals(await stagings(key), []);
  },
);

testWithCache(
  "CacheEntryHandle.lock() removes a killed process's staging directory of another digest",
  async (key) => {
    await using child = await fill({ ...key, sha256: B });
    Deno.kill(child.pid, "SIGKILL");
    await child.ended;
    (await cacheEntryHandle(key).lock())[Symbol.dispose]();
    assertEquals(await stagings(key), []);
  },
);

testWithCache(
  "removeStaleStagingOfImage() keeps the staging directory of a running process",
  async (key) => {
    await using _child = await fill({ ...key, sha256: B });
    (await cacheEntryHandle(key).lock())[Symbol.dispose]();
    await removeStaleStagingOfImage(key.cache, key.image, {
      env: processEnvironment,
    });
    const [name] = await stagings(key);
    const part = join(key.cache, "demo", name, "image.qcow2");
    assertEquals(await Deno.readTextFile(part), "partial");
  },
);

testWithCache(
  "CacheEntryHandle.lock() acquires the lock when the process that holds it is killed",
  async (key) => {
    await using child = await fill(key);
    const waiting = Promise.withResolvers<void>();
    const mine = cacheEntryHandle(key).lock({ emit: () => waiting.resolve() });
    await waiting.promise;
    Deno.kill(child.pid, "SIGKILL");
    using _lock = await mine;
    assertEquals(await stagings(key), []);
  },
);

testWithCache(
  "CacheEntryHandle.lock() throws cancelled when the signal is aborted while waiting",
  async (key) => {
    using _lock = await cacheEntryHandle(key).lock();
    const abort = new AbortController();
    const { signal } = abort;
    await expectFailure(
      "cancelled",
      () => cacheEntryHandle(key).lock({ signal, emit: () => abort.abort() }),
    );
  },
);

testWithCache(
  "CacheEntryHandle.lock() releases the lock when it cannot remove a stale staging directory",
  async (key) => {
    const stale = join(key.cache, "demo", `.staging-${B}-0`);
    await Deno.mkdir(stale, { recursive: true });
    // A directory in place of its lock file.
    await Deno.mkdir(cacheEntryHandle({ ...key, sha256: B }).lockPath);
    await assertRejects(() => cacheEntryHandle(key).lock());
    await Deno.remove(cacheEntryHandle({ ...key, sha256: B }).lockPath);
    (await cacheEntryHandle(key).lock())[Symbol.dispose]();
  },
);
