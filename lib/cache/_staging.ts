/**
 * Where an image is filled in: on the cache's filesystem, out of readers' sight.
 *
 *     <cache>/<image>/.staging-<sha256>-<id>/
 *
 * @module
 */
import { dirname, join } from "../path.ts";
import type { Environment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { BootLoader } from "../image/boot_loader.ts";
import { asDigest, type Sha256 } from "../system/digest.ts";
import {
  absentAs,
  type Fingerprint,
  fingerprint,
  isSame,
  removeTree,
  syncToDisk,
} from "../system/files.ts";
import { tryLock } from "../system/lock.ts";
import { readPartRecord } from "../system/part_record.ts";
import { writeRecord } from "./_record.ts";
import { parseStagingName, stagingIds, stagingName } from "./_staging_names.ts";

/** Names an entry of the cache. */
export interface CacheKey {
  /** The cache's directory. */
  cache: string;
  /** The image's name. */
  image: string;
  /** SHA-256 of the image. */
  sha256: Sha256;
}

/** A verified file on its way to its place. */
export interface VerifiedFile {
  /** Where it lies now: in staging. */
  path: string;
  /** Its name in the cache. */
  name: string;
  /** Where it came from. */
  source: string;
  /** What it boots with. */
  boot?: BootLoader;
  /** The file whose bytes have the digest. */
  hashed: Fingerprint;
}

/**
 * A directory for an image on its way into the cache. Disposing removes it, but
 * for what a transfer that was cut can be gone on with.
 */
export interface Staging extends AsyncDisposable {
  /** Its path, on the cache's filesystem. */
  dir: string;
  /**
   * Puts a verified file into its place: read-only, synced, and in one rename
   * together with its record. An entry that is there already is replaced.
   *
   * @returns The image's path in the cache.
   * @throws {ToolsmithError} `checksum_mismatch` when it is another file than the
   * one that was hashed.
   */
  place(file: VerifiedFile): Promise<string>;
}

/** What nobody has come back for in so long is removed, in milliseconds. */
const KEEP_MS = 7 * 24 * 3_600_000;

/** The directory of an entry. */
export function entryDir({ cache, image, sha256 }: CacheKey): string {
  return join(cache, image, sha256);
}

/** The file of an entry's lock. */
export function lockPath({ cache, image, sha256 }: CacheKey): string {
  return join(cache, image, `.${sha256}.lock`);
}

/**
 * Makes a staging directory for an entry, whose lock the caller has, or resumes
 * the one that this user's interrupted transfer left.
 *
 * @param key The entry.
 * @param env Read for `XDG_CACHE_HOME` and `HOME`.
 */
export async function stage(key: CacheKey, env: Environment): Promise<Staging> {
  const { cache, image, sha256 } = key;
  const partials = await listPartials(cache, image, env);
  const cut = partials.find((partial) => partial.sha256 === sha256)?.dir;
  const dir = cut ??
    stagingDir(key, await (await stagingIds(cache, image, env)).next(sha256));
  if (!cut) await Deno.mkdir(dir, { mode: 0o700 });
  return {
    dir,
    place: (file) => place(key, dir, file),
    async [Symbol.asyncDispose]() {
      if (!await readPartRecord(dir)) await removeTree(dir);
    },
  };
}

/**
 * Takes an entry away in one step. The caller has its lock.
 *
 * @param key The entry.
 * @returns `false` if it was gone.
 */
export async function takeAway(key: CacheKey): Promise<boolean> {
  // No id of this user's: what an entry holds is never resumed.
  const aside = stagingDir(key, crypto.randomUUID());
  const gone = await absentAs("gone", Deno.rename(entryDir(key), aside));
  if (gone) return false;
  await removeOwn(aside);
  return true;
}

/**
 * Removes staging directories that no process fills any more: one whose lock can
 * be had has no owner. What this user can resume stays for seven days.
 *
 * @param cache The cache's directory.
 * @param image The image's name.
 * @param options Whose they are, and the entry whose lock the caller has.
 */
export async function sweepStaging(
  cache: string,
  image: string,
  { env, held }: { env: Environment; held?: Sha256 },
) {
  const kept = new Map<string, string>();
  for (const { sha256, dir, used } of await listPartials(cache, image, env)) {
    const isFresh = Date.now() - used.getTime() < KEEP_MS;
    if (isFresh && !kept.has(sha256)) kept.set(sha256, dir);
  }
  for (const { sha256, dir } of await stagings(cache, image)) {
    if (kept.get(sha256) === dir) continue;
    if (sha256 === held) await removeOwn(dir);
    else await removeStaging({ cache, image, sha256 }, dir);
  }
}

/**
 * Removes a staging directory, unless a process fills it.
 *
 * @param key The entry that it is for.
 * @param dir The directory.
 * @returns `false` if one does.
 */
export async function removeStaging(
  key: CacheKey,
  dir: string,
): Promise<boolean> {
  using free = await deniedAs(undefined, tryLock(lockPath(key)));
  if (free) await removeOwn(dir);
  return free !== undefined;
}

/**
 * Removes what a killed process has left of an entry that is in its place, where
 * that can be written.
 *
 * @param key The entry.
 */
export async function sweepPlaced(key: CacheKey): Promise<void> {
  try {
    for (const { sha256, dir } of await stagings(key.cache, key.image)) {
      if (sha256 === key.sha256) await removeStaging(key, dir);
    }
  } catch {
    // Such as a read-only file system: it serves the image all the same.
  }
}

/** What a transfer that was cut has left in staging. */
export interface Partial {
  /** SHA-256 of the image that it is to become. */
  sha256: Sha256;
  /** The staging directory. */
  dir: string;
  /** Bytes that are there. */
  bytes: number;
  /** Size of the whole, in bytes. */
  total: number;
  /** When the last of them came. */
  used: Date;
}

/**
 * Lists what this user's transfers of an image have left, those with the most
 * bytes first. Directories that anything else made are not looked into.
 *
 * @param cache The cache's directory.
 * @param image The image's name.
 * @param env Read for `XDG_CACHE_HOME` and `HOME`.
 */
export async function listPartials(
  cache: string,
  image: string,
  env: Environment,
): Promise<Partial[]> {
  const found: Partial[] = [];
  const ids = await stagingIds(cache, image, env);
  for (const { isDirectory, ...name } of await stagings(cache, image)) {
    if (!isDirectory || !await ids.isOwn(name)) continue;
    const { dir, sha256 } = name;
    const partial = await deniedAs(undefined, readPartial(dir, sha256));
    if (partial) found.push(partial);
  }
  return found.sort((a, b) => b.bytes - a.bytes);
}

async function readPartial(
  dir: string,
  sha256: Sha256,
): Promise<Partial | undefined> {
  const record = await readPartRecord(dir);
  if (record?.digest !== asDigest(sha256)) return undefined;
  const { bytes, size: total, used } = record;
  return { sha256, dir, bytes, total, used };
}

async function stagings(cache: string, image: string) {
  const found = [];
  for await (const { name, isDirectory } of Deno.readDir(join(cache, image))) {
    const parsed = parseStagingName(name);
    if (!parsed) continue;
    found.push({ ...parsed, isDirectory, dir: join(cache, image, name) });
  }
  return found;
}

/**
 * Takes a refusal of the system for a value.
 *
 * @param value The value.
 * @param work Something that may not be this user's to do.
 * @returns The work's result, or the value.
 */
export async function deniedAs<T, V>(
  value: V,
  work: Promise<T>,
): Promise<T | V> {
  try {
    return await work;
  } catch (error) {
    if (error instanceof Deno.errors.PermissionDenied) return value;
    throw error;
  }
}

/** What another user has left in it stays, and is in nobody's way. */
async function removeOwn(path: string) {
  await deniedAs(undefined, removeTree(path));
}

function stagingDir({ cache, image, sha256 }: CacheKey, id: string): string {
  return join(cache, image, stagingName({ sha256, id }));
}

async function place(
  key: CacheKey,
  staging: string,
  { path: from, name, source, boot, hashed }: VerifiedFile,
): Promise<string> {
  const dir = entryDir(key);
  const fresh = join(staging, "entry");
  await Deno.mkdir(fresh, { mode: 0o755 });
  const path = join(fresh, name);
  await Deno.rename(from, path);
  await syncToDisk(path);
  await Deno.chmod(path, 0o444);
  const now = await fingerprint(path);
  // The name and mode that it has now have changed its ctime.
  if (!now || !isSame(now, { ...hashed, ctime: now.ctime })) {
    throw new ToolsmithError(
      "checksum_mismatch",
      `Cannot place ${name}: the file was replaced after it was hashed`,
      { hint: "find out who else writes to the cache" },
    );
  }
  const verified = new Date().toISOString();
  const digest = asDigest(key.sha256);
  const record = { file: name, digest, source, verified, ...now, boot };
  await writeRecord(fresh, record, staging);
  await syncToDisk(fresh);
  // A directory cannot be renamed onto one that is not empty: it makes way first.
  await absentAs(undefined, Deno.rename(dir, join(staging, "old")));
  await Deno.rename(fresh, dir);
  await syncToDisk(dirname(dir));
  return join(dir, name);
}
