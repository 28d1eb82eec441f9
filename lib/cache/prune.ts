/**
 * Looks after the cache: what is in it, and what can go.
 *
 * @module
 */
import { join, resolve } from "@std/path";
import {
  type CacheKey,
  entryDir,
  lockPath,
  lookUp,
  sweepStaging,
} from "./entry.ts";
import { asDigest, type Digest, sha256Hex } from "../system/digest.ts";
import { removeTree } from "../system/files.ts";
import { tryLock } from "../system/lock.ts";
import {
  listSnapshots,
  removeSnapshot,
  type Snapshot,
  sweepSnapshots,
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
  /** Machines that were saved of it. */
  states: Snapshot[];
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
}

/** What {@linkcode pruneCache} did. */
export interface PruneResult {
  /** Images that went, or would go. */
  removed: CacheEntry[];
  /** Saved machines that went, or would go, those of kept images too. */
  states: Snapshot[];
  /** What could have gone, but another process is at work on it. */
  busy: CacheEntry[];
  /** Bytes that are free now, or would be. */
  bytes: number;
}

const SHA256 = /^[0-9a-f]{64}$/;

/**
 * Lists the images of a cache, the latest used of each name first.
 *
 * Needs `--allow-read` for the cache.
 *
 * @param cache The cache's directory; one that is not there is empty.
 * @returns The entries.
 */
export async function listCache(cache: string): Promise<CacheEntry[]> {
  const entries: CacheEntry[] = [];
  for (const image of await dirs(cache)) {
    for (const sha256 of await dirs(join(cache, image))) {
      if (!SHA256.test(sha256)) continue;
      const key = { cache, image, sha256 };
      const file = await lookUp(key);
      if (!file) continue;
      const used = await lastUse(key);
      if (!used) continue;
      entries.push({
        image,
        digest: asDigest(sha256),
        path: file.path,
        bytes: file.bytes,
        source: file.record?.source,
        verified: file.record?.verified,
        used: used.toISOString(),
        trusted: file.trusted,
        states: await listSnapshots(statesDir(key)),
      });
    }
  }
  return entries.sort((a, b) =>
    a.image < b.image ? -1 : a.image > b.image ? 1 : a.used < b.used ? 1 : -1
  );
}

/**
 * Removes saved machines, then images, that nobody used lately, and what
 * interrupted runs left. A machine can be saved again within seconds: those of
 * images that stay go too. An entry that is being filled stays; a machine that runs from a removed image
 * keeps it until it ends (not on Windows, where it cannot be removed).
 *
 * Needs `--allow-read` and `--allow-write` for the cache.
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
  const folderOf = (key: CacheKey) => resolve(entryDir(key));
  const safe = new Set((options.protect ?? []).map(folderOf));
  const result: PruneResult = { removed: [], states: [], busy: [], bytes: 0 };
  const seen = new Map<string, number>();
  for (const entry of await listCache(cache)) {
    const rank = seen.get(entry.image) ?? 0;
    seen.set(entry.image, rank + 1);
    const sha256 = sha256Hex(entry.digest);
    const key = { cache, image: entry.image, sha256 };
    if (!dryRun) await sweepSnapshots(statesDir(key));
    for (const state of entry.states) {
      if (now() - Date.parse(state.used) < olderThanMs) continue;
      if (!dryRun && !await removeSnapshot(statesDir(key), state)) continue;
      result.states.push(state);
      result.bytes += state.bytes;
    }
    const age = now() - Date.parse(entry.used);
    if (rank < keep || age < olderThanMs || safe.has(folderOf(key))) {
      continue;
    }
    const outcome = dryRun ? "removed" : await removeEntry(key);
    if (outcome === "busy") result.busy.push(entry);
    if (outcome !== "removed") continue;
    result.removed.push(entry);
    result.bytes += entry.bytes;
  }
  if (!dryRun) {
    for (const image of await dirs(cache)) await sweepStaging(cache, image);
  }
  return result;
}

/** Where machines of an image are saved. */
function statesDir(key: CacheKey): string {
  return join(entryDir(key), "machines");
}

/** When an entry was last asked for; `undefined` if it is gone by now. */
async function lastUse(key: CacheKey): Promise<Date | undefined> {
  try {
    return (await Deno.stat(entryDir(key))).mtime ?? new Date(0);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/** Takes an entry away in one step, unless somebody works on it. */
async function removeEntry(
  key: CacheKey,
): Promise<"removed" | "busy" | "gone"> {
  using held = await tryLock(lockPath(key));
  if (!held) return "busy";
  const name = `.staging-${key.sha256}-pruned`;
  const aside = join(key.cache, key.image, name);
  await removeTree(aside);
  try {
    await Deno.rename(entryDir(key), aside);
  } catch (error) {
    // Another prune had the lock before.
    if (error instanceof Deno.errors.NotFound) return "gone";
    throw error;
  }
  await removeTree(aside);
  return "removed";
}

async function dirs(path: string): Promise<string[]> {
  const names: string[] = [];
  try {
    for await (const { name, isDirectory } of Deno.readDir(path)) {
      if (isDirectory && !name.startsWith(".")) names.push(name);
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return names.sort();
}
