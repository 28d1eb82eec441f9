import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { cacheEntry } from "../../lib/cache/entry.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { hydrate, type HydrateOptions } from "../../lib/hydrate/hydrate.ts";
import type { Manifest } from "../../lib/manifest/manifest.ts";
import { parseImageSource } from "../../lib/manifest/source.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { dataOffset, qcow2, writeImage } from "../support/qcow2.ts";

/** What a test has at hand. */
interface Bench {
  /** The workspace. */
  root: string;
  /** The image that the manifest names, a file of this host. */
  source: string;
  /** Its bytes. */
  bytes: Uint8Array<ArrayBuffer>;
  digest: string;
  /** Where it lies in the cache. */
  path: string;
  /** Hydrates; a manifest may name another digest or source. */
  run: (
    options?: HydrateOptions,
    image?: { sha256?: string; source?: string },
  ) => Promise<{
    result: Awaited<ReturnType<typeof hydrate>>;
    events: ToolsmithEvent[];
  }>;
  /** Types of the events of the last run, without progress. */
  told: () => string[];
  /** The last run's event of a type. */
  event: (type: ToolsmithEvent["type"]) => Record<string, unknown>;
}

/** Runs a test with a workspace, and an image that boots by BIOS. */
function test(name: string, body: (bench: Bench) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const root = join(dir.path, "work");
    const source = join(dir.path, "a.qcow2");
    const sector = crypto.getRandomValues(new Uint8Array(512));
    sector.fill(0, 446).set([0x55, 0xaa], 510);
    const tables = [[BigInt(dataOffset({}))]];
    await writeImage(source, qcow2({ tables, data: sector }));
    const bytes = await Deno.readFile(source);
    const hash = await crypto.subtle.digest("SHA-256", bytes);
    const sha256 = new Uint8Array(hash).toHex();
    const events: ToolsmithEvent[] = [];
    await body({
      root,
      source,
      bytes,
      digest: `sha256:${sha256}`,
      path: join(root, ".toolsmith", "cache", "demo", sha256, "a.qcow2"),
      async run(options, image) {
        events.length = 0;
        const manifest: Manifest = {
          path: join(root, "tools.json"),
          root,
          image: {
            name: "demo",
            sha256: image?.sha256 ?? sha256,
            source: parseImageSource(image?.source ?? source, root),
          },
          tools: {},
          operations: [],
        };
        const env = new Map<string, string>();
        const onEvent = (event: ToolsmithEvent) => events.push(event);
        const result = await hydrate(manifest, { env, onEvent, ...options });
        return { result, events };
      },
      told: () =>
        events.map(({ type }) => type)
          .filter((type) => !/^download|checksum_progress/.test(type)),
      event(type) {
        const found = events.filter((it) => it.type === type);
        assertEquals(found.length, 1, type);
        const { timestamp: _, type: _type, ...fields } = { ...found[0] };
        return fields;
      },
    });
  });
}

const BOOT = { arch: "x86_64", firmware: "bios" } as const;
const PLACED = ["checksum_verified", "cache_placed"];

/** Changes bytes of an image in the cache, as a damaged disk does. */
async function damage(path: string) {
  await Deno.chmod(path, 0o644);
  using file = await Deno.open(path, { write: true });
  await file.write(new Uint8Array([9, 9, 9]));
}

test("an image is copied once, and then found, each time as what it is", async (bench) => {
  const { path, digest, bytes, run, told, event } = bench;
  const all = { path, digest, bytes: bytes.length, boot: BOOT };
  const first = await run();
  assertEquals(first.result, { outcome: "copied", ...all } as unknown);
  assertEquals(told(), PLACED);
  const entry = join(path, "..");
  await Deno.utime(entry, new Date(0), new Date(0));
  const second = await run();
  assertEquals(second.result, { outcome: "cached", ...all } as unknown);
  // Its use is noted, for prune.
  const { mtime } = await Deno.stat(entry);
  assertEquals(mtime!.getTime() > 0, true);
  assertEquals(told(), ["cache_hit"]);
  assertEquals(event("cache_hit"), { image: "demo", path, digest });
  assertEquals(await Deno.readFile(path), bytes);
});

test("the cache is where it is asked for, or where the variable says", async (bench) => {
  const { root, path, run } = bench;
  const below = path.slice(join(root, ".toolsmith", "cache").length);
  const env = new Map([["TOOLSMITH_CACHE", join(root, "variable")]]);
  const named = await run({ env });
  assertEquals(named.result.path, join(root, "variable", below));
  const asked = await run({ env, cache: join(root, "option") });
  assertEquals(asked.result.path, join(root, "option", below));
});

test("an image is read again if that is asked for, and copied again by force", async (bench) => {
  const { path, digest, bytes, run, told, event } = bench;
  await run();
  assertEquals((await run({ verify: true })).result.outcome, "cached");
  assertEquals(told(), ["checksum_verified", "cache_hit"]);
  const { length } = bytes;
  assertEquals(event("checksum_verified"), {
    image: "demo",
    digest,
    bytes: length,
  });
  const { ino } = await Deno.stat(path);
  assertEquals((await run({ force: true })).result.outcome, "copied");
  assertEquals(told(), PLACED);
  assertEquals((await Deno.stat(path)).ino === ino, false);
});

test("an image that was touched is read once, and believed from then on", async (bench) => {
  const { path, run, told } = bench;
  await run();
  await Deno.utime(path, new Date(0), new Date(0));
  assertEquals((await run()).result.outcome, "cached");
  assertEquals(told(), ["checksum_verified", "cache_hit"]);
  const { result } = await run();
  assertEquals([result.outcome, result.boot], ["cached", BOOT]);
  assertEquals(told(), ["cache_hit"]);
});

test("an image that was damaged is told as such, and copied again", async (bench) => {
  const { path, bytes, run, told, event } = bench;
  await run();
  await damage(path);
  const wrong = await crypto.subtle.digest(
    "SHA-256",
    await Deno.readFile(path),
  );
  assertEquals((await run()).result.outcome, "copied");
  assertEquals(told(), ["cache_corrupt", ...PLACED]);
  const reason = `its digest is sha256:${new Uint8Array(wrong).toHex()}`;
  assertEquals(event("cache_corrupt"), { image: "demo", path, reason });
  assertEquals(await Deno.readFile(path), bytes);
});

test("an image of another digest is refused with both, and none is kept", async (bench) => {
  const { root, source, digest, run } = bench;
  const sha256 = "0".repeat(64);
  const { message, hint } = await failure(
    "checksum_mismatch",
    () => run({}, { sha256 }),
  );
  assertEquals(
    message,
    `Checksum mismatch for ${source}: expected ${sha256}, actual ${
      digest.slice(7)
    }`,
  );
  assertEquals(
    hint,
    "nothing was kept; if the image was published again, set image.qcow2_sha256 to the actual digest, else find out who changed it",
  );
  const left = [...Deno.readDirSync(join(root, ".toolsmith", "cache", "demo"))];
  assertEquals(left.map(({ name }) => name), [`.${sha256}.lock`]);
});

test("offline the cache and files of this host are used, and nothing is asked for", async (bench) => {
  const { root, path, run, told, digest } = bench;
  const address = { source: "https://images.invalid/a.qcow2" };
  const miss = async (image: { source: string; sha256?: string }) => {
    const { message, hint } = await failure(
      "offline_miss",
      () => run({ offline: true, retries: 0 }, image),
    );
    const sha256 = image.sha256 ?? digest.slice(7);
    const dir = join(root, ".toolsmith", "cache", "demo", sha256);
    assertEquals(
      message,
      `Cannot hydrate demo offline: no good image in ${dir}`,
    );
    assertEquals(
      hint,
      "run once without --offline, or copy the cache from another host",
    );
  };
  await miss(address);
  // Not even a lock was made.
  await assertRejects(
    () => Deno.stat(join(root, ".toolsmith")),
    Deno.errors.NotFound,
  );
  await run({ offline: true });
  assertEquals(
    (await run({ offline: true }, address)).result.outcome,
    "cached",
  );
  await damage(path);
  await miss(address);
  assertEquals(told(), ["cache_corrupt"]);
});

test("who waits for another is told for which lock, and finds its work done", async (bench) => {
  const { root, path, digest, run, told, event } = bench;
  await run();
  const cache = join(root, ".toolsmith", "cache");
  const sha256 = digest.slice(7);
  const entry = cacheEntry({ cache, image: "demo", sha256 });
  await Deno.utime(path, new Date(0), new Date(0));
  const held = await entry.lock();
  let waited = 0;
  const { result } = await run({
    onEvent(event) {
      if (event.type !== "lock_wait") return;
      assertEquals([event.image, event.path], ["demo", entry.lockPath]);
      waited++;
      held[Symbol.dispose]();
    },
  });
  assertEquals([result.outcome, waited], ["cached", 1]);
  // What another has placed meanwhile is not brought again.
  await Deno.utime(path, new Date(5000), new Date(5000));
  const again = await entry.lock();
  const cached = (await entry.lookUp())!;
  let renewed = Promise.resolve();
  const second = await run({
    onEvent(event) {
      waited++;
      if (event.type !== "lock_wait") return;
      renewed = again.renew(cached).then(() => again[Symbol.dispose]());
    },
  });
  await renewed;
  // The wait, and what was found in the cache.
  assertEquals([second.result.outcome, waited], ["cached", 3]);
  await run();
  assertEquals([told(), event("cache_hit").path], [["cache_hit"], path]);
});

test("an image whose record others could have written is read, and that is told", async (bench) => {
  if (Deno.build.os === "windows") return;
  const { root, path, run, told, event } = bench;
  await run();
  const cache = join(root, ".toolsmith", "cache");
  await Deno.chmod(cache, 0o777);
  assertEquals((await run()).result.outcome, "cached");
  assertEquals(told(), ["warning", "checksum_verified", "cache_hit"]);
  const start = `The image is read at each start, as ${cache} `;
  assertEquals(String(event("warning").message).slice(0, start.length), start);
  assertEquals(event("cache_hit").path, path);
});

test("who stops waiting for another gets the reason", async (bench) => {
  const { root, digest, run } = bench;
  const cache = join(root, ".toolsmith", "cache");
  const sha256 = digest.slice(7);
  using _held = await cacheEntry({ cache, image: "demo", sha256 }).lock();
  const stop = new AbortController();
  const { signal } = stop;
  const onEvent = () => stop.abort();
  await failure("cancelled", () => run({ signal, onEvent }));
});

test("who has stopped before gets the reason, and nothing is made", async (bench) => {
  const { run, root } = bench;
  const signal = AbortSignal.abort(new Error("enough"));
  const error = await assertRejects(() => run({ signal }), Error);
  assertEquals(error.message.includes("enough"), true, error.message);
  await assertRejects(() => Deno.stat(root), Deno.errors.NotFound);
});

test("a cache that cannot be written serves the image that it has, and no other", async (bench) => {
  const { root, path, run, told, digest } = bench;
  await run();
  const lock = join(
    root,
    ".toolsmith",
    "cache",
    "demo",
    `.${digest.slice(7)}.lock`,
  );
  // Root writes everywhere: a directory in the lock's place stops everyone.
  await Deno.remove(lock);
  await Deno.mkdir(lock);
  assertEquals((await run({ verify: true })).result.outcome, "cached");
  assertEquals(told(), ["checksum_verified", "cache_hit"]);
  await failure("cache_unwritable", () => run({ force: true }));
  await damage(path);
  await failure("cache_unwritable", () => run());
  assertEquals(told(), ["cache_corrupt"]);
  await Deno.remove(path);
  await failure("cache_unwritable", () => run());
  assertEquals(told(), []);
});
