/** Downloads an image without a known digest, so that `init` can pin it. */
import {
  type CacheEntryHandle,
  cacheEntryHandle,
  resolveCacheDir,
} from "../cache/entry.ts";
import { createEmitter, type OnEvent } from "../events.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import { type Sha256, sha256OfText } from "../system/digest.ts";
import { fetchImage, type FetchOptions } from "./fetch_image.ts";
import { addToCache, lockEntry } from "./_add_to_cache.ts";

export interface DownloadUnpinnedImageOptions extends FetchOptions {
  workspace: string;
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  onEvent?: OnEvent;
}

/** Downloads an image into the cache under its computed digest. */
export async function downloadUnpinnedImage(
  image: Omit<ManifestImage, "sha256">,
  options: DownloadUnpinnedImageOptions,
): Promise<Sha256> {
  const { workspace, signal } = options;
  const emit = createEmitter(options.onEvent);
  const cache = await resolveCacheDir(workspace, options);
  // Until the image's digest is known, that of its source names the staging.
  const sourceSha256 = await sha256OfText(formatImageSource(image.source));
  const entryOf = (sha256: Sha256) =>
    cacheEntryHandle({ cache, image: image.name, sha256 }, options);
  const lock = (entry: CacheEntryHandle) =>
    lockEntry(entry, image.name, { emit, signal });
  using lockedSource = await lock(entryOf(sourceSha256));
  await using download = await lockedSource.createOrResumeStaging();
  const fetchOptions = { ...options, emit, pinned: false };
  const unpinned = { ...image, sha256: sourceSha256 };
  const fetched = await fetchImage(unpinned, download.dir, fetchOptions);
  const entry = entryOf(fetched.sha256);
  using locked = await lock(entry);
  if (!(await entry.lookUpImage())?.trusted) {
    await using staging = await locked.createOrResumeStaging();
    await addToCache(image, { staging, fetched, emit, signal });
  }
  return fetched.sha256;
}
