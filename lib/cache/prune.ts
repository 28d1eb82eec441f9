/**
 * Looks after the cache: what is in it, what can go, and what may be used that was
 * copied here.
 *
 * @module
 */
import { join, resolve } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { asDigest, type Digest, sha256Hex } from "../system/digest.ts";
import { absentAs } from "../system/files.ts";
import {
  deniedAs,
  entryDir,
  listPartials,
  removeStaging,
  sweepStaging,
} from "./_staging.ts";
import { cacheEntry, type CacheKey } from "./entry.ts";
import {
  type Snapshot,
  snapshotDir,
  type SnapshotStore,
  snapshotStore,
  userSnapshotsDir,
} from "./snapshots.ts";

/** An image in the cache. */
export interface CacheEntry {
  /** The image's name. */
  image: string;
  /** `sha256:` and the digest in hex. */
  digest: Digest;
  /** The image's absolute path. */
  path: string;
  /** Size, in bytes. */
  bytes: number;
  /** Where it came from, if that is known. */
  source?: string;
  /** When it was verified, as an ISO 8601 time, if it was. */
  verified?: string;
  /** When it was last asked for, as an ISO 8601 time. */
  used: string;
  /** Whether it is untouched since it was verified. */
  trusted: boolean;
  /** This user's snapshots of it. */
  states: Snapshot[];
}

/** An image whose transfer was cut; the next one goes on with its bytes. */
export interface PartialImage {
  /** The image's name. */
  image: string;
  /** `sha256:` and the digest that the whole has, in hex. */
  digest: Digest;
  /** The directory that holds it. */
  path: string;
  /** Bytes that are there. */
  bytes: number;
  /** Size of the whole, in bytes. */
  total: number;
  /** When the last of them came, as an ISO 8601 time. */
  used: string;
}

/** What {@linkcode pruneCache} takes. */
export interface PruneOptions {
  /** How many of the latest used entries of each image stay. @default {1} */
  keep?: number;
  /** Only what was not used for so long goes, in milliseconds. @default {0} */
  olderThanMs?: number;
  /** Say what would go, and remove nothing. @default {false} */
  dryRun?: boolean;
  /** What stays whatever its age. @default {[]} */
  protect?: CacheKey[];
  /** The clock, in milliseconds since the epoch. @default {Date.now} */
  now?: () => number;
  /** Read for this user's own cache. @default {processEnvironment} */
  env?: Environment;
}

/** What {@linkcode pruneCache} did. */
export interface PruneResult {
  /** Images that went, or would go. */
  removed: CacheEntry[];
  /** Snapshots that went, or would go, those of kept images too. */
  states: Snapshot[];
  /** What cut transfers had left, and went, or would go. */
  partials: PartialImage[];
  /** What could have gone, but another process is at work on it. */
  busy: CacheEntry[];
  /** What could have gone, but is not this user's to remove. */
  denied: CacheEntry[];
  /** Bytes that are free now, or would be. */
  bytes: number;
}

const SHA256 = /^[0-9a-f]{64}$/;

/**
 * Lists the images of a cache, the latest used of each name first.
 *
 * Needs `--allow-read` for the cache, and `--allow-sys=uid`.
 *
 * @param cache The cache's directory; one that is not there is empty.
 * @param options Where this user's own cache is.
 * @returns The entries.
 */
export async function listCache(
  cache: string,
  options: { env?: Environment } = {},
): Promise<CacheEntry[]> {
  const entries: CacheEntry[] = [];
  for (const image of await dirs(cache)) {
    const found: CacheEntry[] = [];
    for (const sha256 of await dirs(join(cache, image))) {
      if (!SHA256.test(sha256)) continue;
      const entry = await readEntry({ cache, image, sha256 }, options.env);
      if (entry) found.push(entry);
    }
    const used = (entry: CacheEntry) => Date.parse(entry.used);
    entries.push(...found.sort((a, b) => used(b) - used(a)));
  }
  return entries;
}

/**
 * Removes snapshots, then images, that nobody used lately, and what cut transfers
 * left. A machine can be saved again within seconds: those of images that
 * stay go too. An entry that is being filled stays, and so does what belongs to
 * another user; a machine that runs from a removed image keeps it until it ends
 * (not on Windows, where it cannot be removed).
 *
 * Needs `--allow-read` and `--allow-write` for the cache, `--allow-sys=uid`.
 *
 * @param cache The cache's directory.
 * @param options What stays.
 * @returns What went.
 */
export async function pruneCache(
  cache: string,
  options: PruneOptions = {},
): Promise<PruneResult> {
  const { keep = 1, olderThanMs = 0, dryRun = false, now = Date.now } = options;
  const { env = processEnvironment } = options;
  const safe = new Set((options.protect ?? []).map(placeOf));
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
  const seen = new Map<string, number>();
  const entries = await listCache(cache, { env });
  for (const store of await storesOf(entries, env)) {
    if (!dryRun) await store.sweep();
    for (const snapshot of (await store.list()).filter(isOld)) {
      if (!dryRun && !await store.remove(snapshot)) continue;
      result.states.push(snapshot);
      result.bytes += snapshot.bytes;
    }
  }
  for (const entry of entries) {
    const rank = seen.get(entry.image) ?? 0;
    seen.set(entry.image, rank + 1);
    const sha256 = sha256Hex(entry.digest);
    const key = { cache, image: entry.image, sha256 };
    if (rank < keep || !isOld(entry) || safe.has(placeOf(key))) continue;
    const outcome = dryRun ? "removed" : await removeEntry(key);
    if (outcome !== "gone") result[outcome].push(entry);
    if (outcome === "removed") result.bytes += entry.bytes;
  }
  for (
    const partial of (await listPartialImages(cache, { env })).filter(isOld)
  ) {
    const { image, digest, path } = partial;
    const key = { cache, image, sha256: sha256Hex(digest) };
    if (!dryRun && !await removeStaging(key, path)) continue;
    result.partials.push(partial);
    result.bytes += partial.bytes;
  }
  if (!dryRun) {
    for (const image of await dirs(cache)) {
      await sweepStaging(cache, image, { env });
    }
  }
  return result;
}

/**
 * Accepts the snapshots of a cache that was copied here from a host of the same
 * kind, with times of modification. Their bytes are not compared.
 *
 * Needs `--allow-read` and `--allow-write` for the cache, `--allow-sys=uid`.
 *
 * @param cache The cache's directory.
 * @param options Where this user's own cache is.
 * @returns The snapshots that can be restored now, and could not before.
 */
export async function adoptSnapshots(
  cache: string,
  { env = processEnvironment }: { env?: Environment } = {},
): Promise<Snapshot[]> {
  const stores = await storesOf(await listCache(cache, { env }), env);
  const adopted = await Promise.all(stores.map((store) => store.adopt()));
  return adopted.flat();
}

/**
 * Lists what cut transfers have left in a cache. They are removed after seven
 * days, when anything of the same image is hydrated.
 *
 * Needs `--allow-read` and `--allow-write` for the cache and for this user's own,
 * and `--allow-sys=uid`.
 *
 * @param cache The cache's directory; one that is not there is empty.
 * @param options Where this user's own cache is.
 * @returns What this user's next transfers can resume.
 */
export async function listPartialImages(
  cache: string,
  { env = processEnvironment }: { env?: Environment } = {},
): Promise<PartialImage[]> {
  const found: PartialImage[] = [];
  for (const image of await dirs(cache)) {
    for (
      const { sha256, dir, bytes, total, used } of await listPartials(
        cache,
        image,
        env,
      )
    ) {
      const digest = asDigest(sha256);
      const time = used.toISOString();
      found.push({ image, digest, path: dir, bytes, total, used: time });
    }
  }
  return found;
}

function placeOf(key: CacheKey): string {
  return resolve(entryDir(key));
}

async function readEntry(
  key: CacheKey,
  env?: Environment,
): Promise<CacheEntry | undefined> {
  const file = await deniedAs(undefined, cacheEntry(key).lookUp());
  const used = await absentAs(undefined, Deno.stat(entryDir(key)));
  if (!file || !used) return undefined;
  const snapshots = await snapshotDir(file.path, env);
  return {
    image: key.image,
    digest: asDigest(key.sha256),
    path: file.path,
    bytes: file.bytes,
    source: file.record?.source,
    verified: file.record?.verified,
    used: (used.mtime ?? new Date(0)).toISOString(),
    trusted: file.trusted,
    states: snapshots ? await snapshotStore(snapshots).list() : [],
  };
}

/** Snapshots of these images, and all in this user's own cache. */
async function storesOf(
  entries: CacheEntry[],
  env: Environment,
): Promise<SnapshotStore[]> {
  const places = new Set<string>();
  for (const { path } of entries) {
    const dir = await snapshotDir(path, env);
    if (dir) places.add(dir);
  }
  const own = userSnapshotsDir(env);
  if (own) { for (const name of await dirs(own)) places.add(join(own, name)); }
  return [...places].map(snapshotStore);
}

/** Takes an entry away, unless somebody works on it or it is somebody else's. */
async function removeEntry(
  key: CacheKey,
): Promise<"removed" | "busy" | "denied" | "gone"> {
  return await deniedAs(
    "denied",
    (async () => {
      using held = await cacheEntry(key).tryLock();
      if (!held) return "busy";
      return await held.remove() ? "removed" : "gone";
    })(),
  );
}

async function dirs(path: string): Promise<string[]> {
  const names: string[] = [];
  try {
    for await (const { name, isDirectory } of Deno.readDir(path)) {
      if (isDirectory && !name.startsWith(".")) names.push(name);
    }
  } catch (error) {
    const none = error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.PermissionDenied;
    if (!none) throw error;
  }
  return names.sort();
}
