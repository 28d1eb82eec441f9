/**
 * Locks a cache entry, and moves a fetched image with the expected digest into it.
 */
import type {
  CacheEntryHandle,
  ImageStaging,
  LockedCacheEntry,
} from "../cache/entry.ts";
import type { Emit } from "../events.ts";
import { findBootLoader } from "../image/boot_loader.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import { sha256ToDigest } from "../system/digest.ts";
import type { FetchedImage } from "./fetch_image.ts";

export interface LockEntryOptions {
  emit: Emit;
  signal?: AbortSignal;
}

export interface AddToCacheOptions extends LockEntryOptions {
  staging: ImageStaging;
  fetched: FetchedImage;
}

/** Waits for the lock of an image's entry, and emits `lock_wait` if it must wait. */
export function lockEntry(
  entry: CacheEntryHandle,
  image: string,
  { emit, signal }: LockEntryOptions,
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
  { staging, fetched, emit, signal }: AddToCacheOptions,
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
