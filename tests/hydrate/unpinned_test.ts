import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { cacheEntry } from "../../lib/cache/entry.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import {
  downloadUnpinned,
  type UnpinnedOptions,
} from "../../lib/hydrate/_unpinned.ts";
import { sha256OfText } from "../../lib/system/digest.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { qcow2, writeImage } from "../support/qcow2.ts";

/** What a test has at hand. */
interface Bench {
  /** The workspace. */
  root: string;
  /** The image's path. */
  path: string;
  /** Its digest. */
  sha256: string;
  /** Brings it into the cache. */
  download: (more?: Partial<UnpinnedOptions>) => Promise<string>;
  /** Names in a directory of the cache. */
  names: (dir: string) => string[];
}

/** Runs a test with an image whose digest nobody has named. */
function test(name: string, body: (bench: Bench) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const root = join(dir.path, "work");
    const path = join(dir.path, "a.qcow2");
    await writeImage(path, qcow2({}));
    const bytes = await Deno.readFile(path);
    const digest = await crypto.subtle.digest("SHA-256", bytes);
    const image = { name: "demo", source: { kind: "file" as const, path } };
    const env = new Map<string, string>();
    await body({
      root,
      path,
      sha256: new Uint8Array(digest).toHex(),
      download: (more) => downloadUnpinned(image, { root, env, ...more }),
      names: (dir) => [...Deno.readDirSync(dir)].map((it) => it.name).sort(),
    });
  });
}

test("an image is placed under the digest that it turns out to have", async (bench) => {
  const { root, path, sha256, download, names } = bench;
  assertEquals(await download(), sha256);
  const cache = join(root, ".toolsmith", "cache");
  const { record, trusted } =
    (await cacheEntry({ cache, image: "demo", sha256 }).lookUp())!;
  assertEquals([trusted, record?.source], [true, path]);
  // What is left are the image, its lock, and that of what it was at first.
  const first = await sha256OfText(path);
  assertEquals(
    names(join(cache, "demo")),
    [`.${sha256}.lock`, `.${first}.lock`, sha256].sort(),
  );
});

test("the cache is where it is asked for, or where the variable says", async (bench) => {
  const { root, sha256, download, names } = bench;
  const env = new Map([["TOOLSMITH_CACHE", join(root, "variable")]]);
  await download({ env });
  assertEquals(names(root), ["variable"]);
  await download({ env, cache: join(root, "option") });
  assertEquals(names(root), ["option", "variable"]);
  const dir = join(root, "option", "demo", sha256);
  assertEquals(names(dir), ["a.qcow2", "verified.json"]);
});

test("an image that is there already stays, one that was changed is replaced", async (bench) => {
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
    (await cacheEntry({ cache, image: "demo", sha256 }).lookUp())!;
  await Deno.chmod(path, 0o644);
  await Deno.writeTextFile(path, "changed");
  await run();
  assertEquals(placed.map(({ length }) => length), [1, 0, 1]);
  assertEquals((await Deno.stat(path)).size, 1536);
});

test("who waits for another is told for which lock, and goes on after it", async (bench) => {
  const { root, path, sha256, download } = bench;
  const cache = join(root, ".toolsmith", "cache");
  for (const waited of [await sha256OfText(path), sha256]) {
    const entry = cacheEntry({ cache, image: "demo", sha256: waited });
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

test("an image that cannot be used leaves nothing", async (bench) => {
  const { root, path, download, names } = bench;
  await Deno.writeTextFile(path, "no image");
  await failure("image_invalid", () => download());
  const left = names(join(root, ".toolsmith", "cache", "demo"));
  assertEquals(left.filter((name) => !name.endsWith(".lock")), []);
});
