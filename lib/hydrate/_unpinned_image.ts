/**
 * Downloads an image without a known digest, so that `init` can pin it.
 *
 * @module
 */
import { cacheEntryHandle, resolveCacheDir } from "../cache/entry.ts";
import { createEmitter, type OnEvent } from "../events.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import { type Sha256, sha256OfText } from "../system/digest.ts";
import { fetchImage, type FetchOptions } from "./fetch_image.ts";
import { addToCache } from "./_add_to_cache.ts";

export interface DownloadUnpinnedImageOptions extends FetchOptions {
  /** The workspace. */
  workspace: string;
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  onEvent?: OnEvent;
}

/**
 * Downloads an image into the cache under its computed digest.
 *
 * Needs the permissions of `hydrate`, and throws the same errors.
 */
export async function downloadUnpinnedImage(
  image: Omit<ManifestImage, "sha256">,
  options: DownloadUnpinnedImageOptions,
): Promise<Sha256> {
  const { workspace, signal } = options;
  const emit = createEmitter(options.onEvent);
  const cache = await resolveCacheDir(workspace, options);
  // Until the image's digest is known, that of its source names the staging.
  const sourceSha256 = await sha256OfText(formatImageSource(image.source));
  const lock = async (sha256: Sha256) => {
    const key = { cache, image: image.name, sha256 };
    const entry = cacheEntryHandle(key, options);
    const path = entry.lockPath;
    const onWait = () => emit({ type: "lock_wait", image: image.name, path });
    return { entry, locked: await entry.lock({ signal, onWait }) };
  };
  const { locked: lockedSource } = await lock(sourceSha256);
  using sourceEntry = lockedSource;
  await using download = await sourceEntry.createOrResumeStaging();
  const fetchOptions = { ...options, emit, pinned: false };
  const unpinned = { ...image, sha256: sourceSha256 };
  const fetched = await fetchImage(unpinned, download.dir, fetchOptions);
  const { entry, locked } = await lock(fetched.sha256);
  using lockedEntry = locked;
  if (!(await entry.lookUpImage())?.trusted) {
    await using staging = await lockedEntry.createOrResumeStaging();
    await addToCache(image, { staging, fetched, emit, signal });
  }
  return fetched.sha256;
}
