import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { cacheEntryHandle } from "../../lib/cache/entry.ts";
import { createEmitter, type ToolsmithEvent } from "../../lib/events.ts";
import { downloadUnpinnedImage } from "../../lib/hydrate/_add_to_cache.ts";
import type { HydrateOptions } from "../../lib/hydrate/hydrate.ts";
import { sha256OfText } from "../../lib/system/digest.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { makeQcow2, writeImage } from "../support/qcow2.ts";

/** What each test gets. */
interface Bench {
  /** The workspace. */
  root: string;
  /** The image's path. */
  path: string;
  /** Its digest. */
  sha256: string;
  /** Downloads the image into the cache. */
  download: (options?: HydrateOptions) => Promise<string>;
  /** Sorted names in a directory. */
  names: (dir: string) => string[];
}

/** Runs a test with an image without a pinned digest. */
function test(name: string, body: (bench: Bench) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const root = join(dir.path, "work");
    const path = join(dir.path, "a.qcow2");
    await writeImage(path, makeQcow2({}));
    const bytes = await Deno.readFile(path);
    const digest = await crypto.subtle.digest("SHA-256", bytes);
    const image = { name: "demo", source: { kind: "file" as const, path } };
    const env = new Map<string, string>();
    await body({
      root,
      path,
      sha256: new Uint8Array(digest).toHex(),
      download({ cache, env: given = env, onEvent } = {}) {
        const emit = createEmitter(onEvent);
        return downloadUnpinnedImage(image, root, { cache, env: given, emit });
      },
      names: (dir) => [...Deno.readDirSync(dir)].map((it) => it.name).sort(),
    });
  });
}

test("downloadUnpinnedImage() caches an image under its computed digest", async (bench) => {
  const { root, path, sha256, download, names } = bench;
  assertEquals(await download(), sha256);
  const cache = join(root, ".toolsmith", "cache");
  const { verificationRecord, trusted } =
    (await cacheEntryHandle({ cache, image: "demo", sha256 }).lookUpImage())!;
  assertEquals([trusted, verificationRecord?.source], [true, path]);
  // The image, its lock, and the lock for its source.
  const first = await sha256OfText(path);
  assertEquals(
    names(join(cache, "demo")),
    [`.${sha256}.lock`, `.${first}.lock`, sha256].sort(),
  );
});

test("downloadUnpinnedImage() uses the cache option, then TOOLSMITH_CACHE", async (bench) => {
  const { root, sha256, download, names } = bench;
  const env = new Map([["TOOLSMITH_CACHE", join(root, "variable")]]);
  await download({ env });
  assertEquals(names(root), ["variable"]);
  await download({ env, cache: join(root, "option") });
  assertEquals(names(root), ["option", "variable"]);
  const dir = join(root, "option", "demo", sha256);
  assertEquals(names(dir), ["a.qcow2", "verified.json"]);
});

test("downloadUnpinnedImage() keeps an intact cached image and replaces a changed one", async (bench) => {
  const { root, sha256, download } = bench;
  const placed: ToolsmithEvent[][] = [];
  const run = async () => {
    const events: ToolsmithEvent[] = [];
    const onEvent = (event: ToolsmithEvent) => events.push(event);
    assertEquals(await download({ onEvent }), sha256);
    placed.push(events.filter(({ type }) => type === "cache_placed"));
  };
  await run();
  await run();
  const cache = join(root, ".toolsmith", "cache");
  const { path } =
    (await cacheEntryHandle({ cache, image: "demo", sha256 }).lookUpImage())!;
  await Deno.chmod(path, 0o644);
  await Deno.writeTextFile(path, "changed");
  await run();
  assertEquals(placed.map(({ length }) => length), [1, 0, 1]);
  assertEquals((await Deno.stat(path)).size, 1536);
});

test("downloadUnpinnedImage() emits lock_wait with the lock's path, then continues", async (bench) => {
  const { root, path, sha256, download } = bench;
  const cache = join(root, ".toolsmith", "cache");
  for (const waited of [await sha256OfText(path), sha256]) {
    const entry = cacheEntryHandle({ cache, image: "demo", sha256: waited });
    const held = await entry.lock();
    const told: unknown[] = [];
    const onEvent = (event: ToolsmithEvent) => {
      if (event.type !== "lock_wait") return;
      told.push([event.image, event.path]);
      held[Symbol.dispose]();
    };
    assertEquals(await download({ onEvent }), sha256);
    assertEquals(told, [["demo", entry.lockPath]]);
  }
});

test("downloadUnpinnedImage() leaves nothing in the cache for a non-QCOW2 file", async (bench) => {
  const { root, path, download, names } = bench;
  await Deno.writeTextFile(path, "no image");
  await expectFailure("image_invalid", () => download());
  const left = names(join(root, ".toolsmith", "cache", "demo"));
  assertEquals(left.filter((name) => !name.endsWith(".lock")), []);
});
