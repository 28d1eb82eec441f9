/**
 * Puts an image that has arrived, and has the digest that it should have, into
 * its place in the cache.
 *
 * @module
 */
import type { ImageStaging } from "../cache/entry.ts";
import type { Emit } from "../events.ts";
import { type BootLoader, findBootLoader } from "../image/boot_loader.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import { formatSource } from "../manifest/source.ts";
import { asDigest } from "../system/digest.ts";
import type { FetchedImage } from "./fetch.ts";

/** What {@linkcode placeFetched} takes besides the image. */
export interface PlaceOptions {
  /** Where its place is filled. */
  staging: ImageStaging;
  /** The file that has arrived. */
  fetched: FetchedImage;
  /** Takes events. */
  emit: Emit;
  /** Ends the look at the image when aborted. @default {undefined} */
  signal?: AbortSignal;
}

/** An image in its place. */
export interface PlacedImage {
  /** Its path in the cache. */
  path: string;
  /** What it boots with, where that was found. */
  boot: BootLoader | undefined;
}

/**
 * Places an image.
 *
 * @param image Its name and source.
 * @param options The file and its place.
 * @returns Where it is, and what it boots with: that is part of its record, so
 * that a start need not look.
 * @throws {ToolsmithError} `image_invalid`, `image_unsafe`, `cache_unwritable`,
 * `checksum_mismatch` when the file is not the one that was hashed.
 */
export async function placeFetched(
  { name: image, source }: Pick<ManifestImage, "name" | "source">,
  { staging, fetched, emit, signal }: PlaceOptions,
): Promise<PlacedImage> {
  const { path: from, name, bytes, actual, hashed } = fetched;
  const digest = asDigest(actual);
  const shown = formatSource(source);
  const found = await findBootLoader(from, { shown, signal });
  // Who publishes it knows better than its disk says.
  const { arch = found.arch } = fetched;
  const boot = found.firmware || arch
    ? { ...arch && { arch }, ...found.firmware && { firmware: found.firmware } }
    : undefined;
  emit({ type: "checksum_verified", image, digest, bytes });
  const file = { path: from, name, source: shown };
  const path = await staging.place({ ...file, boot, hashed });
  emit({ type: "cache_placed", image, path, digest, bytes });
  return { path, boot };
}
