/**
 * Puts an image that has arrived, and has the digest that it should have, into
 * its place in the cache.
 *
 * @module
 */
import type { ImageStaging } from "../cache/entry.ts";
import type { Emit } from "../events.ts";
import { inspectQcow2 } from "../image/qcow2.ts";
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
}

/**
 * Places an image.
 *
 * @param image Its name and source.
 * @param options The file and its place.
 * @returns The image's path in the cache.
 * @throws {ToolsmithError} `image_invalid`, `cache_unwritable`.
 */
export async function placeFetched(
  { name: image, source }: Pick<ManifestImage, "name" | "source">,
  { staging, fetched, emit }: PlaceOptions,
): Promise<string> {
  const { path: from, name, bytes, actual } = fetched;
  const digest = asDigest(actual);
  await inspectQcow2(from);
  emit({ type: "checksum_verified", image, digest, bytes });
  const placed = { path: from, name, source: formatSource(source) };
  const path = await staging.place(placed);
  emit({ type: "cache_placed", image, path, digest, bytes });
  return path;
}
