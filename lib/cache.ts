/**
 * The cache of images and snapshots: list, adopt and prune.
 *
 * @example List a cache, adopt copied snapshots, and prune it
 * ```ts no-run
 * import {
 *   adoptSnapshots,
 *   listCache,
 *   listPartialImages,
 *   pruneCache,
 * } from "@fountain/toolsmith/cache";
 *
 * const cache = ".toolsmith/cache";
 * console.log(await listCache(cache), await listPartialImages(cache));
 * await adoptSnapshots(cache);
 * const { bytes } = await pruneCache(cache, { keep: 2, dryRun: true });
 * console.log(`${bytes} bytes would be free`);
 * ```
 *
 * @module
 */
export {
  adoptSnapshots,
  type CacheEntry,
  listCache,
  listPartialImages,
  type PartialImage,
  pruneCache,
  type PruneOptions,
  type PruneResult,
} from "./cache/maintenance.ts";
export type { CacheKey } from "./cache/entry.ts";
export type { Snapshot, SnapshotFiles } from "./cache/snapshots.ts";
export type { UpdateSize } from "./events.ts";
