/**
 * Downloads an image whose digest nobody has named yet, so that it can be pinned.
 *
 * @module
 */
import { cacheEntry, findCache } from "../cache/entry.ts";
import { emitter, type OnEvent } from "../events.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import { formatSource } from "../manifest/source.ts";
import { type Sha256, sha256OfText } from "../system/digest.ts";
import { fetchImage, type FetchOptions } from "./fetch.ts";
import { placeFetched } from "./_place.ts";

/** What {@linkcode downloadUnpinned} takes. */
export interface UnpinnedOptions extends FetchOptions {
  /** The workspace. */
  root: string;
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  /** Gets each event. @default {undefined} */
  onEvent?: OnEvent;
}

/**
 * Downloads an image into the cache, under the digest that it turns out to have.
 *
 * Needs what `hydrate` needs.
 *
 * @param image Its name and source.
 * @param options The cache, and how to reach the source.
 * @returns The digest.
 * @throws {ToolsmithError} What `hydrate` throws.
 */
export async function downloadUnpinned(
  image: Omit<ManifestImage, "sha256">,
  options: UnpinnedOptions,
): Promise<Sha256> {
  const { root, signal } = options;
  const emit = emitter(options.onEvent);
  const cache = await findCache(root, options);
  const place = { cache, image: image.name };
  // Until its digest is known, its source stands for it.
  const source = await sha256OfText(formatSource(image.source));
  const lock = async (sha256: Sha256) => {
    const entry = cacheEntry({ ...place, sha256 }, options);
    const path = entry.lockPath;
    const onWait = () => emit({ type: "lock_wait", image: image.name, path });
    return { entry, held: await entry.lock({ signal, onWait }) };
  };
  const { held } = await lock(source);
  using _waiting = held;
  await using arriving = await held.stage();
  const fetch = { ...options, emit, pinned: false };
  const known = { ...image, sha256: source };
  const fetched = await fetchImage(known, arriving.dir, fetch);
  const { entry, held: own } = await lock(fetched.actual);
  using placing = own;
  if (!(await entry.lookUp())?.trusted) {
    await using staging = await placing.stage();
    await placeFetched(image, { staging, fetched, emit, signal });
  }
  return fetched.actual;
}
