/**
 * Images in a cache, without a transfer.
 *
 * @module
 */
import { join } from "@std/path";
import { cacheEntry, type CacheKey } from "../../lib/cache/entry.ts";
import { fingerprint } from "../../lib/system/files.ts";
import { temporaryDir } from "./directory.ts";

/** The digest of an image, and that of another. */
export const [A, B] = ["a", "b"].map((digit) => digit.repeat(64));

/** Runs a test with a cache of its own, which is not there yet. */
export function test(name: string, body: (key: CacheKey) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const cache = join(dir.path, "cache");
    await body({ cache, image: "demo", sha256: A });
  });
}

/**
 * Puts an image of 5 bytes into the cache.
 *
 * @param key Its place.
 * @param used When it was last used.
 */
export async function putImage(key: CacheKey, used: Date): Promise<void> {
  using held = await cacheEntry(key).lock();
  await using staging = await held.stage();
  const path = join(staging.dir, "i.qcow2");
  await Deno.writeTextFile(path, "image");
  const hashed = (await fingerprint(path))!;
  await staging.place({ path, name: "i.qcow2", source: "/x", hashed });
  await Deno.utime(cacheEntry(key).dir, used, used);
}
