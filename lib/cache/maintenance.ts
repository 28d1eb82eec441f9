/** Cache maintenance: lists, prunes, and adopts copied snapshots. */
import { join, resolve } from "../path.ts";
import type { UpdateSize } from "../events.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import {
  type Digest,
  digestToSha256,
  isSha256Digest,
  sha256ToDigest,
} from "../system/digest.ts";
import { orIfDenied, orIfNotFound } from "../system/files.ts";
import { removeUnlockedStagingDir } from "../system/lock.ts";
import {
  entryDir,
  entryLockPath,
  listPartialsOfImage,
  type PartialImage,
  removeStaleStagingOfImage,
  tryRemoveEntry,
} from "./_image_staging.ts";
import { cacheEntryHandle, type CacheKey } from "./entry.ts";
import {
  type Snapshot,
  snapshotDirOf,
  snapshotStore,
  userSnapshotsDir,
} from "./snapshots.ts";

export type { PartialImage };

/** A cached image, as listed by {@linkcode listCache}. */
export interface CacheEntry {
  /** The image's name. */
  image: string;
  /** `sha256:` and the digest in hex. */
  digest: Digest;
  /** The image's absolute path. */
  path: string;
  /** Size, in bytes. */
  bytes: number;
  /** The image's source, if known. */
  source?: string;
  /** When the image was last verified, as an ISO 8601 time, if known. */
  verified?: string;
  /** Set if a part of the image was copied from an older one. */
  update?: UpdateSize;
  /** When the image was last used, as an ISO 8601 time. */
  used: string;
  /** Whether the image is unchanged since its verification. */
  trusted: boolean;
  /** This user's snapshots of the image. */
  states: Snapshot[];
}

/** Options of {@linkcode pruneCache}. */
export interface PruneOptions {
  /** Number of most recently used entries to keep of each image. @default {1} */
  keep?: number;
  /** Minimum time since the last use, in milliseconds. @default {0} */
  olderThanMs?: number;
  /** Return what would be removed, and remove nothing. @default {false} */
  dryRun?: boolean;
  /** Entries to keep whatever their age. @default {[]} */
  protect?: CacheKey[];
  /** The clock, in milliseconds since the epoch. @default {Date.now} */
  now?: () => number;
  /** Locates this user's own cache. @default {processEnvironment} */
  env?: Environment;
}

/** Result of {@linkcode pruneCache}; with `dryRun`, what would be removed. */
export interface PruneResult {
  /** Removed images. */
  removed: CacheEntry[];
  /** Removed snapshots, also those of kept images. */
  states: Snapshot[];
  /** Removed partial downloads. */
  partials: PartialImage[];
  /** Entries that are kept because another process holds their lock. */
  busy: CacheEntry[];
  /** Entries that are kept because this user may not remove them. */
  denied: CacheEntry[];
  /** Total size of what was removed, in bytes. */
  bytes: number;
}

/**
 * Lists the images of a cache by name, most recently used first.
 *
 * Needs `--allow-read` for the cache, and `--allow-sys=uid`.
 *
 * @param cache The cache's directory; a missing one counts as empty.
 * @param options `env` locates this user's own cache.
 * @returns The entries.
 */
export async function listCache(
  cache: string,
  options: { env?: Environment } = {},
): Promise<CacheEntry[]> {
  const entries: CacheEntry[] = [];
  for (const image of await listSubdirectories(cache)) {
    const found: CacheEntry[] = [];
    for (const sha256 of await listSubdirectories(join(cache, image))) {
      if (!isSha256Digest(sha256ToDigest(sha256))) continue;
      const entry = await readCacheEntry({ cache, image, sha256 }, options.env);
      if (entry) found.push(entry);
    }
    const used = (entry: CacheEntry) => Date.parse(entry.used);
    entries.push(...found.sort((a, b) => used(b) - used(a)));
  }
  return entries;
}

/**
 * Removes snapshots, images and partial downloads that were not used lately.
 * Snapshots of kept images are removed too, as they can be saved again within
 * seconds. Locked entries and other users' entries are kept. A VM that runs from
 * a removed image keeps the file until it ends; Windows refuses the removal.
 *
 * Needs `--allow-read` and `--allow-write` for the cache, `--allow-sys=uid`.
 *
 * @param cache The cache's directory.
 * @param options What to keep.
 * @returns What was removed and what was kept.
 */
export async function pruneCache(
  cache: string,
  options: PruneOptions = {},
): Promise<PruneResult> {
  const { keep = 1, olderThanMs = 0, dryRun = false, now = Date.now } = options;
  const { env = processEnvironment, protect = [] } = options;
  const absoluteDir = (key: CacheKey) => resolve(entryDir(key));
  const protectedDirs = new Set(protect.map(absoluteDir));
  const keyOf = (found: CacheEntry | PartialImage): CacheKey => ({
    cache,
    image: found.image,
    sha256: digestToSha256(found.digest),
  });
  const isOld = ({ used }: { used: string }) =>
    now() - Date.parse(used) >= olderThanMs;
  const result: PruneResult = {
    removed: [],
    states: [],
    partials: [],
    busy: [],
    denied: [],
    bytes: 0,
  };
  const entries = await listCache(cache, { env });
  for (const store of await findSnapshotStores(entries, env)) {
    if (!dryRun) await store.removeInterruptedSaves();
    for (const snapshot of (await store.list()).filter(isOld)) {
      if (!dryRun && !await store.remove(snapshot)) continue;
      result.states.push(snapshot);
      result.bytes += snapshot.bytes;
    }
  }
  const entriesByImage = Map.groupBy(entries, ({ image }) => image);
  const surplus = [...entriesByImage.values()].flatMap((it) => it.slice(keep));
  for (const entry of surplus.filter(isOld)) {
    const key = keyOf(entry);
    if (protectedDirs.has(absoluteDir(key))) continue;
    const outcome = dryRun ? "removed" : await tryRemoveEntry(key);
    if (outcome !== "gone") result[outcome].push(entry);
    if (outcome === "removed") result.bytes += entry.bytes;
  }
  const partials = await listPartialImages(cache, { env });
  for (const partial of partials.filter(isOld)) {
    const lock = entryLockPath(keyOf(partial));
    if (!dryRun && !await removeUnlockedStagingDir(partial.path, lock)) {
      continue;
    }
    result.partials.push(partial);
    result.bytes += partial.bytes;
  }
  if (!dryRun) {
    for (const image of await listSubdirectories(cache)) {
      await orIfDenied(removeStaleStagingOfImage(cache, image, { env }));
    }
  }
  return result;
}

/**
 * Makes the snapshots of a cache restorable that was copied from a host of the same
 * kind, with modification times. Sizes and these times are compared, bytes are not.
 *
 * Needs `--allow-read` and `--allow-write` for the cache, `--allow-sys=uid`.
 *
 * @param cache The cache's directory.
 * @param options `env` locates this user's own cache.
 * @returns The snapshots that became restorable.
 */
export async function adoptSnapshots(
  cache: string,
  { env = processEnvironment }: { env?: Environment } = {},
): Promise<Snapshot[]> {
  const stores = await findSnapshotStores(await listCache(cache, { env }), env);
  const adoptions = stores.map((store) => store.adoptCopiedSnapshots());
  return (await Promise.all(adoptions)).flat();
}

/**
 * Lists this user's partial downloads in a cache. After seven days, the next
 * `hydrate` of an image with the same name removes them.
 *
 * Needs `--allow-read` and `--allow-write` for the cache and the user's own cache,
 * and `--allow-sys=uid`.
 *
 * @param cache The cache's directory; a missing one counts as empty.
 * @param options `env` locates this user's own cache.
 * @returns The partial downloads that can be resumed.
 */
export async function listPartialImages(
  cache: string,
  { env = processEnvironment }: { env?: Environment } = {},
): Promise<PartialImage[]> {
  const found: PartialImage[] = [];
  for (const image of await listSubdirectories(cache)) {
    const partials = await orIfDenied(listPartialsOfImage(cache, image, env));
    found.push(...partials ?? []);
  }
  return found;
}

async function readCacheEntry(
  key: CacheKey,
  env?: Environment,
): Promise<CacheEntry | undefined> {
  const cached = await orIfDenied(cacheEntryHandle(key).lookUpImage());
  const dirStat = await orIfDenied(orIfNotFound(Deno.stat(entryDir(key))));
  if (!cached || !dirStat) return undefined;
  const { path, bytes, trusted, verificationRecord } = cached;
  const { source, verified, update } = verificationRecord ?? {};
  const digest = sha256ToDigest(key.sha256);
  const snapshotDir = await snapshotDirOf(path, env);
  return {
    ...{ image: key.image, digest, path, bytes, source, verified },
    ...update && { update },
    used: (dirStat.mtime ?? new Date(0)).toISOString(),
    trusted,
    states: snapshotDir ? await snapshotStore(snapshotDir).list() : [],
  };
}

/** Opens the stores of these images, and all in this user's own cache. */
async function findSnapshotStores(entries: CacheEntry[], env: Environment) {
  const root = userSnapshotsDir(env);
  const names = root ? await listSubdirectories(root) : [];
  const dirs = [
    ...await Promise.all(entries.map(({ path }) => snapshotDirOf(path, env))),
    ...names.map((name) => join(root!, name)),
  ].filter((dir) => dir !== undefined);
  return [...new Set(dirs)].map(snapshotStore);
}

async function listSubdirectories(path: string): Promise<string[]> {
  const reading = Array.fromAsync(Deno.readDir(path));
  const entries = await orIfDenied(orIfNotFound(reading)) ?? [];
  return entries
    .filter(({ name, isDirectory }) => isDirectory && !name.startsWith("."))
    .map(({ name }) => name).sort();
}
