/**
 * Moves a fetched image with the expected digest into the cache.
 *
 * @module
 */
import type { ImageStaging } from "../cache/entry.ts";
import type { Emit } from "../events.ts";
import { type BootLoader, findBootLoader } from "../image/boot_loader.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import { sha256ToDigest } from "../system/digest.ts";
import type { FetchedImage } from "./fetch_image.ts";

export interface AddToCacheOptions {
  staging: ImageStaging;
  fetched: FetchedImage;
  emit: Emit;
  /** Cancels the boot loader detection. @default {undefined} */
  signal?: AbortSignal;
}

/** An image that was added to the cache. */
export interface AddedImage {
  path: string;
  boot: BootLoader | undefined;
}

/**
 * Detects the image's boot loader and commits the image to the cache, together
 * with a verification record that holds the boot loader for later runs.
 *
 * @throws {ToolsmithError} `image_invalid`, `image_unsafe`, `cache_unwritable`,
 * `checksum_mismatch` when the file was replaced after it was hashed.
 */
export async function addToCache(
  { name: image, source }: Pick<ManifestImage, "name" | "source">,
  { staging, fetched, emit, signal }: AddToCacheOptions,
): Promise<AddedImage> {
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
