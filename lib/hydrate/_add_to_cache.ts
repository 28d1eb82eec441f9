/**
 * Locks a cache entry, and moves a fetched image into it.
 */
import {
  type CacheEntryHandle,
  cacheEntryHandle,
  type ImageStaging,
  type LockedCacheEntry,
  resolveCacheDir,
} from "../cache/entry.ts";
import { createEmitter, type Emit, type OnEvent } from "../events.ts";
import { findBootLoader } from "../image/boot_loader.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import { type Sha256, sha256OfText, sha256ToDigest } from "../system/digest.ts";
import {
  type FetchedImage,
  fetchImage,
  type FetchOptions,
} from "./fetch_image.ts";

export interface DownloadUnpinnedImageOptions extends FetchOptions {
  workspace: string;
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  onEvent?: OnEvent;
}

/** Waits for the lock of an image's entry, and emits `lock_wait` if it must wait. */
export function lockEntry(
  entry: CacheEntryHandle,
  image: string,
  { emit, signal }: { emit: Emit; signal?: AbortSignal },
): Promise<LockedCacheEntry> {
  const path = entry.lockPath;
  const onWait = () => emit({ type: "lock_wait", image, path });
  return entry.lock({ signal, onWait });
}

/**
 * Detects the image's boot loader and commits the image to the cache, together with a
 * verification record that holds the boot loader for later runs. A file that was
 * replaced after it was hashed is a `checksum_mismatch`.
 */
export async function addToCache(
  { name: image, source }: Pick<ManifestImage, "name" | "source">,
  { staging, fetched, emit, signal }: {
    staging: ImageStaging;
    fetched: FetchedImage;
    emit: Emit;
    signal?: AbortSignal;
  },
) {
  const { path: from, fileName, bytes, sha256, hashedFile } = fetched;
  const { signature, update } = fetched;
  const more = { ...signature && { signature }, ...update && { update } };
  const digest = sha256ToDigest(sha256);
  const shown = formatImageSource(source);
  const detected = await findBootLoader(from, { displayName: shown, signal });
  const { firmware } = detected;
  // The publisher's statement counts more than what the disk suggests.
  const { arch = detected.arch } = fetched;
  const boot = firmware || arch
    ? { ...arch && { arch }, ...firmware && { firmware } }
    : undefined;
  emit({ type: "checksum_verified", image, digest, bytes });
  const file = { path: from, fileName, source: shown };
  const path = await staging.commit({ ...file, boot, ...more, hashedFile });
  emit({ type: "cache_placed", image, path, digest, bytes });
  return { path, boot };
}

/**
 * Downloads an image without a known digest into the cache under its computed digest,
 * so that `init` can pin it.
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
