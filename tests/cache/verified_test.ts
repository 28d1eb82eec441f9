import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  asCacheError,
  cacheEntry,
  type CacheKey,
} from "../../lib/cache/entry.ts";
import { fingerprint } from "../../lib/system/files.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";

const A = "a".repeat(64);
const SOURCE = "oci://ghcr.io/owner/repo:1.0";
const BOOT = { arch: "x86_64", firmware: "uefi" } as const;
const windows = Deno.build.os === "windows";

/** What a test has at hand. */
interface Bench {
  key: CacheKey;
  /** Puts an image into the cache as a hydrate does; returns its path. */
  put: (name?: string) => Promise<string>;
  /** Changes the record's text. */
  edit: (change: (text: string) => string) => Promise<void>;
}

/** Runs a test with a cache of its own. */
function test(name: string, body: (bench: Bench) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const key = { cache: join(dir.path, "cache"), image: "demo", sha256: A };
    const record = join(cacheEntry(key).dir, "verified.json");
    await body({
      key,
      async put(name = "image.qcow2") {
        using held = await cacheEntry(key).lock();
        await using staging = await held.stage();
        const path = join(staging.dir, name);
        await Deno.writeTextFile(path, "image");
        const hashed = (await fingerprint(path))!;
        const file = { path, name, source: SOURCE, boot: BOOT, hashed };
        return await staging.place(file);
      },
      async edit(change) {
        const text = await Deno.readTextFile(record);
        await Deno.writeTextFile(record, change(text));
      },
    });
  });
}

test("what is verified is noted with its source, its time, and what it boots with", async ({ key, put }) => {
  const before = Date.now();
  const path = await put();
  const { record, found, suspect } = (await cacheEntry(key).lookUp())!;
  const { verified, ...rest } = record!;
  const time = Date.parse(verified);
  assert(time >= before && time <= Date.now(), verified);
  assertEquals(rest as unknown, {
    ...(await fingerprint(path))!,
    ...{ file: "image.qcow2", digest: `sha256:${A}` },
    ...{ source: SOURCE, boot: BOOT },
  });
  assertEquals([found, suspect], [(await fingerprint(path))!, undefined]);
  const text = await Deno.readTextFile(join(path, "..", "verified.json"));
  assertEquals(text, JSON.stringify(JSON.parse(text), null, 2) + "\n");
});

test("what is verified again keeps its source and what it boots with", async ({ key, put, edit }) => {
  const path = await put();
  await Deno.utime(path, new Date(0), new Date(0));
  await edit((text) =>
    text.replace(/"verified": "[^"]*"/, '"verified": "long ago"')
  );
  const renew = async () => {
    using held = await cacheEntry(key).lock();
    await held.renew((await cacheEntry(key).lookUp())!);
    const { record, trusted } = (await cacheEntry(key).lookUp())!;
    assertEquals(trusted, true);
    assert(Date.parse(record!.verified) > 0, record!.verified);
    return [record!.source, record!.boot];
  };
  assertEquals(await renew(), [SOURCE, BOOT]);
  await Deno.remove(join(path, "..", "verified.json"));
  assertEquals(await renew(), ["unknown", undefined]);
});

test("a record of 64 KiB is believed, a larger one or another kind of file is not", async ({ key, put, edit }) => {
  const path = await put();
  const trusted = async () => (await cacheEntry(key).lookUp())?.trusted;
  await edit((text) => text.padEnd(64 * 1024));
  assertEquals(await trusted(), true);
  await edit((text) => text + " ");
  assertEquals(await trusted(), false);
  await edit((text) => text.trim());
  assertEquals(await trusted(), true);
  const record = join(path, "..", "verified.json");
  await Deno.rename(record, `${record}.real`);
  await Deno.symlink(`${record}.real`, record);
  assertEquals(await trusted(), false);
  await Deno.remove(record);
  await Deno.mkdir(record);
  assertEquals(await trusted(), false);
});

test("an image without a record is found by its ending, in any case", async ({ key, put }) => {
  const path = await put("IMAGE.QCOW2");
  const { dir } = cacheEntry(key);
  await Deno.remove(join(dir, "verified.json"));
  await Deno.mkdir(join(dir, "a.qcow2"));
  await Deno.writeTextFile(join(dir, "b.qcow2.part"), "");
  const found = await cacheEntry(key).lookUp();
  assertEquals([found?.path, found?.record], [path, undefined]);
});

test("an entry is one process's at a time", async ({ key, put }) => {
  await put();
  const entry = cacheEntry(key);
  assertEquals(entry.lockPath, join(key.cache, "demo", `.${A}.lock`));
  const held = await entry.tryLock();
  assertEquals(await entry.tryLock(), undefined);
  held![Symbol.dispose]();
  using again = await entry.tryLock();
  assertEquals([await again?.remove(), await again?.remove()], [true, false]);
  assertEquals(await entry.lookUp(), undefined);
});

test("a cache that others can write is not filled, and it is said which", async ({ key, put }) => {
  if (windows) return;
  await put();
  const dir = join(key.cache, "demo");
  for (const path of [key.cache, dir]) {
    await Deno.chmod(path, 0o777);
    const { message, hint } = await failure(
      "cache_unwritable",
      () => cacheEntry(key).lock(),
    );
    const start = `Cannot write to the cache at ${dir}: ${path} `;
    assertEquals(message.slice(0, start.length), start);
    assertEquals(
      hint,
      "only its owner fills a cache: put yours elsewhere, TOOLSMITH_CACHE=DIR",
    );
    await Deno.chmod(path, 0o755);
  }
  (await cacheEntry(key).lock())[Symbol.dispose]();
});

test("a cache that is taken away while it is filled is told as such", async ({ key }) => {
  using held = await cacheEntry(key).lock();
  await Deno.remove(join(key.cache, "demo"), { recursive: true });
  await Deno.writeTextFile(join(key.cache, "demo"), "");
  const { message } = await failure("cache_unwritable", () => held.stage());
  const start = `Cannot write to the cache at ${key.cache}: `;
  assertEquals(message.slice(0, start.length), start);
});

Deno.test("what the system says of a cache is told with where, and what to do", () => {
  const cause = Object.assign(new Error("read-only"), { code: "EROFS" });
  const error = asCacheError(cause, "/cache");
  assertEquals(error.message, "Cannot write to the cache at /cache: read-only");
  assertEquals(
    error.hint,
    "check its owner and mode, or put it elsewhere: TOOLSMITH_CACHE=DIR",
  );
  assertEquals(error.cause, cause);
  for (const thrown of [null, undefined, "x", 5]) {
    assertEquals(asCacheError(thrown, "/cache").code, "failed");
  }
});
