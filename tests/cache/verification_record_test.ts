import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  cacheEntryHandle,
  type CacheKey,
  toCacheWriteError,
} from "../../lib/cache/entry.ts";
import { tryRemoveEntry } from "../../lib/cache/_image_staging.ts";
import { readFileIdentity } from "../../lib/system/files.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";

const A = "a".repeat(64);
const SOURCE = "oci://ghcr.io/owner/repo:1.0";
const BOOT = { arch: "x86_64", firmware: "uefi" } as const;
const windows = Deno.build.os === "windows";

/** What each test gets. */
interface Bench {
  key: CacheKey;
  /** Adds an image to the cache, as hydrate does; returns its path. */
  put: (name?: string) => Promise<string>;
  /** Changes the record's text. */
  edit: (change: (text: string) => string) => Promise<void>;
}

/** Runs a test with a cache of its own. */
function test(name: string, body: (bench: Bench) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const key = { cache: join(dir.path, "cache"), image: "demo", sha256: A };
    const record = join(cacheEntryHandle(key).dir, "verified.json");
    await body({
      key,
      async put(name = "image.qcow2") {
        using held = await cacheEntryHandle(key).lock();
        await using staging = await held.createOrResumeStaging();
        const path = join(staging.dir, name);
        await Deno.writeTextFile(path, "image");
        const hashedFile = (await readFileIdentity(path))!;
        const file = {
          path,
          fileName: name,
          source: SOURCE,
          boot: BOOT,
          hashedFile,
        };
        return await staging.commit(file);
      },
      async edit(change) {
        const text = await Deno.readTextFile(record);
        await Deno.writeTextFile(record, change(text));
      },
    });
  });
}

test("verification record: stores source, time, file identity and boot loader", async ({ key, put }) => {
  const before = Date.now();
  const path = await put();
  const {
    verificationRecord,
    fileIdentity,
    untrustedReason,
  } = (await cacheEntryHandle(key).lookUpImage())!;
  const { verified, ...rest } = verificationRecord!;
  const time = Date.parse(verified);
  assert(time >= before && time <= Date.now(), verified);
  assertEquals(rest as unknown, {
    ...(await readFileIdentity(path))!,
    ...{ file: "image.qcow2", digest: `sha256:${A}` },
    ...{ source: SOURCE, boot: BOOT },
  });
  assertEquals([fileIdentity, untrustedReason], [
    (await readFileIdentity(path))!,
    undefined,
  ]);
  const text = await Deno.readTextFile(join(path, "..", "verified.json"));
  assertEquals(text, JSON.stringify(JSON.parse(text), null, 2) + "\n");
});

test("renewVerificationRecord() keeps source and boot loader", async ({ key, put, edit }) => {
  const path = await put();
  await Deno.utime(path, new Date(0), new Date(0));
  await edit((text) =>
    text.replace(/"verified": "[^"]*"/, '"verified": "long ago"')
  );
  const renew = async () => {
    using held = await cacheEntryHandle(key).lock();
    await held.renewVerificationRecord(
      (await cacheEntryHandle(key).lookUpImage())!,
    );
    const { verificationRecord, trusted } =
      (await cacheEntryHandle(key).lookUpImage())!;
    assertEquals(trusted, true);
    assert(
      Date.parse(verificationRecord!.verified) > 0,
      verificationRecord!.verified,
    );
    return [verificationRecord!.source, verificationRecord!.boot];
  };
  assertEquals(await renew(), [SOURCE, BOOT]);
  await Deno.remove(join(path, "..", "verified.json"));
  assertEquals(await renew(), ["unknown", undefined]);
});

test("lookUpImage() ignores a verification record above 64 KiB, and a link or directory in its place", async ({ key, put, edit }) => {
  const path = await put();
  const trusted = async () =>
    (await cacheEntryHandle(key).lookUpImage())?.trusted;
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

test("lookUpImage() finds an image without a record by its extension .qcow2 or .QCOW2", async ({ key, put }) => {
  const path = await put("IMAGE.QCOW2");
  const { dir } = cacheEntryHandle(key);
  await Deno.remove(join(dir, "verified.json"));
  await Deno.mkdir(join(dir, "a.qcow2"));
  await Deno.writeTextFile(join(dir, "b.qcow2.part"), "");
  const found = await cacheEntryHandle(key).lookUpImage();
  assertEquals([found?.path, found?.verificationRecord], [path, undefined]);
});

test("tryRemoveEntry() removes an entry once, and lookUpImage() finds it no more", async ({ key, put }) => {
  await put();
  const entry = cacheEntryHandle(key);
  assertEquals(entry.lockPath, join(key.cache, "demo", `.${A}.lock`));
  const outcomes = [await tryRemoveEntry(key), await tryRemoveEntry(key)];
  assertEquals(outcomes, ["removed", "gone"]);
  assertEquals(await entry.lookUpImage(), undefined);
});

test("CacheEntryHandle.lock() rejects a cache that other users can write, and names the directory", async ({ key, put }) => {
  if (windows) return;
  await put();
  const dir = join(key.cache, "demo");
  for (const path of [key.cache, dir]) {
    await Deno.chmod(path, 0o777);
    const { message, hint } = await expectFailure(
      "cache_unwritable",
      () => cacheEntryHandle(key).lock(),
    );
    const start = `Cannot write to the cache at ${dir}: ${path} `;
    assertEquals(message.slice(0, start.length), start);
    assertEquals(
      hint,
      "set TOOLSMITH_CACHE=DIR to a directory that only you can write",
    );
    await Deno.chmod(path, 0o755);
  }
  (await cacheEntryHandle(key).lock())[Symbol.dispose]();
});

test("createOrResumeStaging() throws cache_unwritable when a file replaced the image's directory after locking", async ({ key }) => {
  using held = await cacheEntryHandle(key).lock();
  await Deno.remove(join(key.cache, "demo"), { recursive: true });
  await Deno.writeTextFile(join(key.cache, "demo"), "");
  const { message } = await expectFailure(
    "cache_unwritable",
    () => held.createOrResumeStaging(),
  );
  const start = `Cannot write to the cache at ${key.cache}: `;
  assertEquals(message.slice(0, start.length), start);
});

Deno.test("toCacheWriteError() returns an error with the cache's path and a hint", () => {
  const cause = Object.assign(new Error("read-only"), { code: "EROFS" });
  const error = toCacheWriteError(cause, "/cache");
  assertEquals(error.message, "Cannot write to the cache at /cache: read-only");
  assertEquals(
    error.hint,
    "check the cache's owner and mode, or use another directory: TOOLSMITH_CACHE=DIR",
  );
  assertEquals(error.cause, cause);
  for (const thrown of [null, undefined, "x", 5]) {
    assertEquals(toCacheWriteError(thrown, "/cache").code, "failed");
  }
});
