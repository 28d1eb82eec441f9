/** Puts images into a cache without a download. */
import { join } from "@std/path";
import { cacheEntryHandle, type CacheKey } from "../../lib/cache/entry.ts";
import { readFileIdentity } from "../../lib/system/files.ts";
import { temporaryDir } from "./directory.ts";

/** The digests of two images. */
export const [A, B] = ["a", "b"].map((digit) => digit.repeat(64));

/** Runs a test with a cache that does not exist yet. */
export function testWithCache(
  name: string,
  body: (key: CacheKey) => Promise<void>,
) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const cache = join(dir.path, "cache");
    await body({ cache, image: "demo", sha256: A });
  });
}

/**
 * Puts an image of 5 bytes into the cache.
 *
 * @param key The cache key.
 * @param used When it was last used.
 */
export async function putCachedImage(key: CacheKey, used: Date): Promise<void> {
  using held = await cacheEntryHandle(key).lock();
  await using staging = await held.createOrResumeStaging();
  const path = join(staging.dir, "i.qcow2");
  await Deno.writeTextFile(path, "image");
  const hashedFile = (await readFileIdentity(path))!;
  await staging.commit({
    path,
    fileName: "i.qcow2",
    source: "/x",
    hashedFile,
  });
  await Deno.utime(cacheEntryHandle(key).dir, used, used);
}
