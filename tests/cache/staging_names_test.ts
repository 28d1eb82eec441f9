/**
 * Only a staging directory that this user created on this host is resumed, never
 * one from a workspace, a copy or another user.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { basename, join } from "@std/path";
import {
  formatStagingName,
  parseStagingName,
  stagingIdSigner,
} from "../../lib/cache/_staging_names.ts";
import { cacheEntryHandle } from "../../lib/cache/entry.ts";
import { sha256ToDigest } from "../../lib/system/digest.ts";
import { openPartFile } from "../../lib/system/part_file.ts";
import { runProcess } from "../../lib/system/process.ts";
import { namesIn, temporaryDir } from "../support/directory.ts";
import { A, B } from "../support/images.ts";

const SIZE = 1000;

/** A cache, in a workspace or elsewhere, and a home directory. */
async function site(cacheDir = join("work", ".toolsmith", "cache")) {
  const dir = await temporaryDir();
  const at = (path: string) => join(dir.path, path);
  const cache = at(cacheDir);
  await Deno.mkdir(join(cache, "demo"), { recursive: true });
  await Deno.mkdir(at("home"));
  const env = new Map([["HOME", at("home")]]);
  const ids = (environment = env) =>
    stagingIdSigner(cache, "demo", environment);
  return {
    ...{ at, cache, env, ids },
    /** Leaves a partial download; returns the number of resumed bytes. */
    async interrupted(environment = env, bytes = 600): Promise<number> {
      const key = { cache, image: "demo", sha256: A };
      using held = await cacheEntryHandle(key, { env: environment }).lock();
      await using staging = await held.createOrResumeStaging();
      const identity = { size: SIZE, digest: sha256ToDigest(A) };
      await using part = await openPartFile(staging.dir, identity);
      const resumed = part.presentBytes;
      using writer = await part.openWriter();
      writer.write(0, new Uint8Array(bytes));
      return resumed;
    },
    /** Names of staging directories. */
    staged: async () =>
      (await namesIn(join(cache, "demo"))).filter(parseStagingName),
    [Symbol.asyncDispose]: () => dir[Symbol.asyncDispose](),
  };
}

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

test("staging names: a workspace cache uses the secret in the user's own cache", async () => {
  await using on = await site();
  const path = on.at("home/.cache/toolsmith/staging.key");
  assertEquals(await on.interrupted(), 0);
  assertMatch(await Deno.readTextFile(path), /^[0-9a-f]{64}$/);
  assertEquals((await Deno.stat(path)).mode! & 0o777, 0o600);
  assertEquals((await Deno.stat(join(path, ".."))).mode! & 0o777, 0o700);
  assertEquals((await namesIn(on.cache)).join(), "demo");
  assertEquals(await on.interrupted(), 600);
  const xdg = new Map([["XDG_CACHE_HOME", on.at("home/.cache")]]);
  assertEquals(await on.interrupted(xdg), 600);
});

test("staging names: a cache outside workspaces holds its own secret", async () => {
  await using on = await site("volume");
  assertEquals(await on.interrupted(), 0);
  assertEquals(await namesIn(on.at("home")), []);
  assert((await namesIn(on.cache)).includes(".staging.key"));
  assertEquals(await on.interrupted(new Map()), 600);
  // The cache may be moved or mounted elsewhere.
  await Deno.rename(on.cache, on.at("other"));
  await Deno.symlink(on.at("other"), on.cache);
  assertEquals(await on.interrupted(new Map()), 600);
});

test("staging names: a cache below a directory that others can write uses the secret in the user's own cache", async () => {
  await using on = await site("shared/cache");
  await Deno.chmod(on.at("shared"), 0o777);
  assertEquals(await on.interrupted(), 0);
  assertEquals((await namesIn(on.cache)).join(), "demo");
  assertEquals(await on.interrupted(), 600);
});

test("staging names: without a home directory, a download starts from byte 0", async () => {
  await using on = await site();
  const none = new Map<string, string>();
  for (const env of [none, new Map([["HOME", on.at("none\0")]])]) {
    assertEquals([await on.interrupted(env), await on.interrupted(env)], [
      0,
      0,
    ]);
  }
  const ids = await on.ids(none);
  const [name] = (await on.staged()).map(parseStagingName);
  assertEquals(await ids.isOwn(name!), false);
  for (const id of ["", "undefined", "aaaaaaaaundefined", "aaaaaaaa"]) {
    assertEquals(await ids.isOwn({ sha256: A, id }), false, id);
  }
});

test("staging names: a home that others can write gets no new secret", async () => {
  await using on = await site();
  const path = on.at("home/.cache/toolsmith/staging.key");
  await on.interrupted();
  const secret = await Deno.readTextFile(path);
  await Deno.chmod(on.at("home"), 0o777);
  assertEquals([await on.interrupted(), await on.interrupted()], [0, 0]);
  assertEquals(await Deno.readTextFile(path), secret);
  await Deno.remove(path);
  await on.interrupted();
  assertEquals(await Deno.stat(path).catch(() => "none"), "none");
});

test("staging names: another user's partial download is removed, not resumed", async () => {
  await using on = await site();
  await on.interrupted();
  const before = await on.staged();
  const other = new Map([["HOME", on.at("work")]]);
  assertEquals(await on.interrupted(other), 0);
  const after = await on.staged();
  assertEquals([after.length, after.includes(before[0])], [1, false]);
});

test("staging names: an id is valid for one image in one directory", async () => {
  await using on = await site();
  const ids = await on.ids();
  const id = await ids.createId(A);
  assertMatch(id, /^[0-9a-f]{40}$/);
  assertEquals(parseStagingName(formatStagingName({ sha256: A, id })), {
    ...{ sha256: A, id },
  });
  const is = async (sha256: string, id: string, image = "demo") => {
    await Deno.mkdir(join(on.cache, image), { recursive: true });
    const ids = await stagingIdSigner(on.cache, image, on.env);
    return await ids.isOwn({ sha256, id });
  };
  assertEquals(await is(A, id), true);
  const last = id.endsWith("0") ? "1" : "0";
  const wrong = [id.slice(0, -1) + last, `${id}-other`, id.slice(0, 8)];
  for (const other of wrong) assertEquals(await is(A, other), false, other);
  assertEquals([await is(B, id), await is(A, id, "other")], [false, false]);
});

for (const dir of ["work/.toolsmith/cache", "volume"]) {
  test(`staging names: a copied secret with its staging directory is not trusted (${dir})`, async () => {
    await using on = await site(dir);
    await on.interrupted();
    assertEquals(await on.interrupted(), 600);
    const root = on.at(".");
    // Copies everything back with all modes and times.
    const words = `cd "$1" && mkdir old && mv ${
      basename(on.at(dir.split("/")[0]))
    } home old && cp -a old/* .`;
    const { code } = await runProcess("sh", {
      args: ["-c", words, "sh", root],
    });
    assertEquals([code, (await on.staged()).length], [0, 1]);
    assertEquals(await on.interrupted(), 0);
    assertEquals(await on.interrupted(), 600);
  });
}

test("staging names: a secret is replaced if others can read it, or if it is truncated or a link", async () => {
  await using on = await site();
  const path = on.at("home/.cache/toolsmith/staging.key");
  const spoil: Record<string, () => Promise<void>> = {
    "read by others": () => Deno.chmod(path, 0o644),
    "too short": () => Deno.writeTextFile(path, "0".repeat(63)),
    "a link": async () => {
      await Deno.rename(path, on.at("home/planted"));
      await Deno.symlink(on.at("home/planted"), path);
    },
  };
  for (const [what, work] of Object.entries(spoil)) {
    await on.interrupted();
    assertEquals(await on.interrupted(), 600, what);
    await work();
    assertEquals(await on.interrupted(), 0, what);
    assertEquals((await Deno.lstat(path)).isFile, true, what);
    assertEquals(await on.interrupted(), 600, what);
  }
});

test("staging names: concurrent processes create one secret", async () => {
  await using on = await site();
  const made = await Promise.all(
    Array.from({ length: 8 }, async () => (await on.ids()).createId(A)),
  );
  const ids = await on.ids();
  for (const id of made) assert(await ids.isOwn({ sha256: A, id }));
});
