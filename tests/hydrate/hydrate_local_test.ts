import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { cacheEntryHandle } from "../../lib/cache/entry.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { hydrate, type HydrateOptions } from "../../lib/hydrate/hydrate.ts";
import type { Manifest } from "../../lib/manifest/manifest.ts";
import { parseImageSource } from "../../lib/manifest/image_source.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { installMovingClock } from "../support/timers.ts";
import { dataOffset, makeQcow2, writeImage } from "../support/qcow2.ts";

/** What each test gets. */
interface Bench {
  /** The workspace. */
  root: string;
  /** The local image that the manifest names. */
  source: string;
  /** Its bytes. */
  bytes: Uint8Array<ArrayBuffer>;
  digest: string;
  /** The image's path in the cache. */
  path: string;
  /** Hydrates; a manifest may name another digest or source. */
  run: (
    options?: HydrateOptions,
    image?: { sha256?: string; source?: string },
  ) => Promise<{
    result: Awaited<ReturnType<typeof hydrate>>;
    events: ToolsmithEvent[];
  }>;
  /** Event types of the last run, without progress. */
  told: () => string[];
  /** The last run's event of a type. */
  event: (type: ToolsmithEvent["type"]) => Record<string, unknown>;
}

/** Runs a test with a workspace and an image that boots with BIOS. */
function test(name: string, body: (bench: Bench) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const root = join(dir.path, "work");
    const source = join(dir.path, "a.qcow2");
    const sector = crypto.getRandomValues(new Uint8Array(512));
    sector.fill(0, 446).set([0x55, 0xaa], 510);
    const tables = [[BigInt(dataOffset({}))]];
    await writeImage(source, makeQcow2({ tables, data: sector }));
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
          workspace: root,
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

/** Overwrites bytes of an image in the cache. */
async function damage(path: string) {
  await Deno.chmod(path, 0o644);
  using file = await Deno.open(path, { write: true });
  await file.write(new Uint8Array([9, 9, 9]));
  // The clock of a file system may not have gone on since the file was written.
  await Deno.utime(path, new Date(), new Date(Date.now() + 1000));
}

test("hydrate copies a local image once, then returns the cached one", async (bench) => {
  const { path, digest, bytes, run, told, event } = bench;
  const all = { path, digest, bytes: bytes.length, boot: BOOT };
  const first = await run();
  assertEquals(first.result, { outcome: "copied", ...all } as unknown);
  assertEquals(told(), PLACED);
  const entry = join(path, "..");
  await Deno.utime(entry, new Date(0), new Date(0));
  const second = await run();
  assertEquals(second.result, { outcome: "cached", ...all } as unknown);
  // The entry's time is updated for prune.
  const { mtime } = await Deno.stat(entry);
  assertEquals(mtime!.getTime() > 0, true);
  assertEquals(told(), ["cache_hit"]);
  assertEquals(event("cache_hit"), { image: "demo", path, digest });
  assertEquals(await Deno.readFile(path), bytes);
});

test("hydrate reports the progress of a local copy", async ({ bytes, run }) => {
  using clock = installMovingClock();
  const reports: unknown[] = [];
  await run({
    onEvent(event) {
      if (event.type === "download_start") clock.pass(1000);
      if (event.type !== "download_progress") return;
      const { bytes, total } = event;
      reports.push({ bytes, total });
    },
  });
  const total = bytes.length;
  assertEquals(reports, [{ bytes: total, total }]);
});

test("hydrate uses the cache option, then TOOLSMITH_CACHE", async (bench) => {
  const { root, path, run } = bench;
  const below = path.slice(join(root, ".toolsmith", "cache").length);
  const env = new Map([["TOOLSMITH_CACHE", join(root, "variable")]]);
  const named = await run({ env });
  assertEquals(named.result.path, join(root, "variable", below));
  const asked = await run({ env, cache: join(root, "option") });
  assertEquals(asked.result.path, join(root, "option", below));
});

test("hydrate rehashes a cached image with verify: true, and copies the image again with force: true", async (bench) => {
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

test("hydrate rehashes a cached image once after the file's times changed", async (bench) => {
  const { path, run, told } = bench;
  await run();
  await Deno.utime(path, new Date(0), new Date(0));
  assertEquals((await run()).result.outcome, "cached");
  assertEquals(told(), ["checksum_verified", "cache_hit"]);
  const { result } = await run();
  assertEquals([result.outcome, result.boot], ["cached", BOOT]);
  assertEquals(told(), ["cache_hit"]);
});

test("hydrate reports a damaged cached image and copies the image again", async (bench) => {
  const { path, bytes, run, told, event } = bench;
  await run();
  await damage(path);
  const wrong = await crypto.subtle.digest(
    "SHA-256",
    await Deno.readFile(path),
  );
  assertEquals((await run()).result.outcome, "copied");
  assertEquals(told(), ["cache_corrupt", ...PLACED]);
  const reason = `the digest is sha256:${new Uint8Array(wrong).toHex()}`;
  assertEquals(event("cache_corrupt"), { image: "demo", path, reason });
  assertEquals(await Deno.readFile(path), bytes);
});

test("hydrate rejects an image with another digest and keeps nothing", async (bench) => {
  const { root, source, digest, run } = bench;
  const sha256 = "0".repeat(64);
  const { message, hint } = await expectFailure(
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
    "if the image was republished, use the actual digest as image.qcow2_sha256 in the manifest or as --sha256; otherwise find out who changed the image",
  );
  const left = [...Deno.readDirSync(join(root, ".toolsmith", "cache", "demo"))];
  assertEquals(left.map(({ name }) => name), [`.${sha256}.lock`]);
});

test("hydrate offline uses the cache or a local image, and makes no request", async (bench) => {
  const { root, path, run, told, digest } = bench;
  const address = { source: "https://images.invalid/a.qcow2" };
  const miss = async (image: { source: string; sha256?: string }) => {
    const { message, hint } = await expectFailure(
      "offline_miss",
      () => run({ offline: true, retries: 0 }, image),
    );
    const sha256 = image.sha256 ?? digest.slice(7);
    const dir = join(root, ".toolsmith", "cache", "demo", sha256);
    assertEquals(
      message,
      `Cannot hydrate demo offline: no verified image in ${dir}`,
    );
    assertEquals(
      hint,
      "run once without --offline, or copy the cache from another host",
    );
  };
  await miss(address);
  // No lock file was created.
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

test("hydrate rejects a missing base image and a directory, before and after the image is cached", async ({ root, run }) => {
  const bases = [
    [join(root, "missing.qcow2"), "source_not_found"],
    [join(root, ".."), "file_unreadable"],
  ] as const;
  for (const outcome of ["copied", "cached"]) {
    for (const [base, code] of bases) {
      const { message } = await expectFailure(code, () => run({ base }));
      assertStringIncludes(message, `Cannot read base image ${base}: `);
    }
    assertEquals((await run()).result.outcome, outcome);
  }
});

test("hydrate emits lock_wait with the lock's path, then uses the other process's image", async (bench) => {
  const { root, path, digest, run, told, event } = bench;
  await run();
  const cache = join(root, ".toolsmith", "cache");
  const sha256 = digest.slice(7);
  const entry = cacheEntryHandle({ cache, image: "demo", sha256 });
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
  // An image that another process added meanwhile is not fetched again.
  await Deno.utime(path, new Date(5000), new Date(5000));
  const again = await entry.lock();
  const cached = (await entry.lookUpImage())!;
  let renewed = Promise.resolve();
  const second = await run({
    onEvent(event) {
      waited++;
      if (event.type !== "lock_wait") return;
      renewed = again.renewVerificationRecord(cached).then(() =>
        again[Symbol.dispose]()
      );
    },
  });
  await renewed;
  // lock_wait and cache_hit.
  assertEquals([second.result.outcome, waited], ["cached", 3]);
  await run();
  assertEquals([told(), event("cache_hit").path], [["cache_hit"], path]);
});

test("hydrate warns and rehashes when other users could have written the verification record", async (bench) => {
  if (Deno.build.os === "windows") return;
  const { root, path, run, told, event } = bench;
  await run();
  const cache = join(root, ".toolsmith", "cache");
  await Deno.chmod(cache, 0o777);
  assertEquals((await run()).result.outcome, "cached");
  assertEquals(told(), ["warning", "checksum_verified", "cache_hit"]);
  const start = `Rehashing image demo at each start because ${cache} `;
  assertEquals(String(event("warning").message).slice(0, start.length), start);
  assertEquals(event("cache_hit").path, path);
});

test("hydrate throws cancelled when the signal is aborted while waiting for the lock", async (bench) => {
  const { root, digest, run } = bench;
  const cache = join(root, ".toolsmith", "cache");
  const sha256 = digest.slice(7);
  using _held = await cacheEntryHandle({ cache, image: "demo", sha256 }).lock();
  const stop = new AbortController();
  const { signal } = stop;
  const onEvent = () => stop.abort();
  await expectFailure("cancelled", () => run({ signal, onEvent }));
});

test("hydrate creates nothing when the signal is already aborted", async (bench) => {
  const { run, root } = bench;
  const signal = AbortSignal.abort(new Error("enough"));
  const error = await assertRejects(() => run({ signal }), Error);
  assertEquals(error.message.includes("enough"), true, error.message);
  await assertRejects(() => Deno.stat(root), Deno.errors.NotFound);
});

test("hydrate returns an intact image from a cache without write access, else throws cache_unwritable", async (bench) => {
  const { root, path, run, told, digest } = bench;
  await run();
  const lock = join(
    root,
    ".toolsmith",
    "cache",
    "demo",
    `.${digest.slice(7)}.lock`,
  );
  // Root can write everywhere: a directory in place of the lock file fails for root too.
  await Deno.remove(lock);
  await Deno.mkdir(lock);
  assertEquals((await run({ verify: true })).result.outcome, "cached");
  assertEquals(told(), ["checksum_verified", "cache_hit"]);
  await expectFailure("cache_unwritable", () => run({ force: true }));
  await damage(path);
  await expectFailure("cache_unwritable", () => run());
  assertEquals(told(), ["cache_corrupt"]);
  await Deno.remove(path);
  await expectFailure("cache_unwritable", () => run());
  assertEquals(told(), []);
});
