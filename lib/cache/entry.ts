/**
 * The cache: where images lie, and how they get there. An entry is there whole
 * and verified, or not at all.
 *
 *     <cache>/<image>/<sha256>/<file>.qcow2       0444, never written again
 *     <cache>/<image>/<sha256>/verified.json      what was verified, and when
 *     <cache>/<image>/.staging-<sha256>-<id>/     being filled; same filesystem
 *     <cache>/<image>/.<sha256>.lock              flock
 *     <cache>/.staging.key                        in a cache outside of workspaces
 *
 * Below the cache's directory no symbolic link is followed.
 *
 * @module
 */
import { basename, join, resolve } from "../path.ts";
import { asDigest } from "../system/digest.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { systemError, ToolsmithError, toToolsmithError } from "../errors.ts";
import { type Fingerprint, fingerprint, isSame } from "../system/files.ts";
import { lock, type LockOptions, tryLock } from "../system/lock.ts";
import { whyLinked, whyUnsafe, whyUntrusted } from "../system/ownership.ts";
import { whyOutside } from "../system/workspace.ts";
import {
  readRecord,
  recordPath,
  type VerificationRecord,
  writeRecord,
} from "./_record.ts";
import {
  type CacheKey,
  deniedAs,
  entryDir,
  lockPath,
  stage,
  type Staging,
  sweepPlaced,
  sweepStaging,
  takeAway,
} from "./_staging.ts";

export type { CacheKey, Staging as ImageStaging };

/** An image that lies in the cache. */
export interface CachedFile {
  /** Its absolute path. */
  path: string;
  /** Size, in bytes. */
  bytes: number;
  /** Whether it is, to all appearance, the file that was verified. */
  trusted: boolean;
  /** Why its record is not believed: another user could have written it. */
  suspect?: string;
  /** The record of its verification, unless there is none to believe. */
  record?: VerificationRecord;
  /** The file as it was found. */
  found: Fingerprint;
}

/** A place for one image in the cache. */
export interface ImageEntry {
  /** Its directory. */
  readonly dir: string;
  /** The file of its lock. */
  readonly lockPath: string;
  /**
   * Looks the image up, without reading it: the record says whether it was
   * touched since it was verified. A record that another user could have
   * written is not read.
   *
   * Needs `--allow-read` for the cache, and `--allow-sys=uid` to believe it.
   *
   * @returns The file, or `undefined` if there is none.
   */
  lookUp(): Promise<CachedFile | undefined>;
  /**
   * Takes the lock, and clears away what dead processes left of this entry and
   * its neighbours.
   *
   * Needs `--allow-read` and `--allow-write` for the cache.
   *
   * @param options Who is notified of a wait, and what ends it.
   * @throws {ToolsmithError} `cache_unwritable`, also where another user could
   * replace what is written, or the image's directory is a link.
   */
  lock(options?: LockOptions): Promise<LockedEntry>;
  /** Takes the lock if no other process has it. */
  tryLock(): Promise<LockedEntry | undefined>;
  /**
   * Notes that the image is in use, for prune, and removes what a process that
   * was killed after placing it has left: both where that can be written.
   */
  touch(): Promise<void>;
}

/** An entry whose lock this process has; disposing releases it. */
export interface LockedEntry extends Disposable {
  /**
   * Makes a directory to fill the image in.
   *
   * @throws {ToolsmithError} `cache_unwritable`.
   */
  stage(): Promise<Staging>;
  /**
   * Notes that the image has been verified again, as it was when it was looked
   * up. Where that cannot be written, it is verified again the next time.
   */
  renew(cached: CachedFile): Promise<void>;
  /**
   * Takes the entry away in one step.
   *
   * @returns `false` if it was gone.
   */
  remove(): Promise<boolean>;
}

const NOT_OWN =
  "only its owner fills a cache: put yours elsewhere, TOOLSMITH_CACHE=DIR";
const LINKED =
  "remove the link, or name a cache elsewhere: --cache DIR or TOOLSMITH_CACHE=DIR";

/** What {@linkcode findCache} takes besides the workspace. */
export interface FindCacheOptions {
  /** The directory that the user names. @default {undefined} */
  cache?: string;
  /** Read for `TOOLSMITH_CACHE`. @default {processEnvironment} */
  env?: Environment;
}

/**
 * Finds the cache's directory, which need not exist. One that the user names may
 * be a link; the workspace's own is not to lead out of the workspace.
 *
 * Needs `--allow-read` for the workspace.
 *
 * @param root The workspace.
 * @param options What the user names.
 * @returns The absolute path of what is named, else of `.toolsmith/cache`.
 * @throws {ToolsmithError} `cache_unwritable` for a link in the workspace.
 */
export async function findCache(
  root: string,
  { cache, env = processEnvironment }: FindCacheOptions = {},
): Promise<string> {
  const named = cache ?? env.get("TOOLSMITH_CACHE");
  if (named) return resolve(named);
  const dir = resolve(root, ".toolsmith", "cache");
  const why = await whyOutside(dir);
  if (why) throw unusable(dir, why, LINKED);
  return dir;
}

/**
 * The place of an image in the cache.
 *
 * @param key The entry.
 * @param options Where this user's own cache is.
 * @returns Its methods; nothing is read or made before one is called.
 */
export function cacheEntry(
  key: CacheKey,
  { env = processEnvironment }: { env?: Environment } = {},
): ImageEntry {
  const dir = entryDir(key);
  return {
    dir,
    lockPath: lockPath(key),
    lookUp: () => lookUp(key),
    lock: (options) => lockEntry(key, env, options),
    async tryLock() {
      const held = await tryLock(lockPath(key));
      return held && lockedEntry(key, env, held);
    },
    async touch() {
      const now = new Date();
      await Deno.utime(dir, now, now).catch(() => {});
      await sweepPlaced(key);
    },
  };
}

async function lookUp(key: CacheKey): Promise<CachedFile | undefined> {
  const dir = entryDir(key);
  if (await whyLinked(dir, key.cache)) return undefined;
  const suspectRecord = await whyUntrusted(recordPath(dir));
  const record = suspectRecord ? undefined : await readRecord(dir);
  const file = record?.file ?? await findImage(dir);
  if (!file) return undefined;
  const path = join(dir, file);
  // A directory, a link or a pipe is no image: it is replaced, and never opened.
  const found = await fingerprint(path);
  if (!found) return undefined;
  const suspect = suspectRecord ?? await whyUntrusted(path);
  const trusted = !suspect && record?.digest === asDigest(key.sha256) &&
    isSame(found, record);
  return { path, bytes: found.size, trusted, suspect, record, found };
}

async function lockEntry(
  key: CacheKey,
  env: Environment,
  options: LockOptions = {},
): Promise<LockedEntry> {
  const dir = join(key.cache, key.image);
  try {
    const link = await whyLinked(dir, key.cache);
    if (link) throw unusable(dir, link, LINKED);
    // Not for a group to write, whatever the umask.
    await Deno.mkdir(dir, { recursive: true, mode: 0o755 });
    const why = await whyUnsafe(key.cache) ?? await whyUnsafe(dir);
    if (why) throw unusable(dir, why, NOT_OWN);
    const held = await lock(lockPath(key), options);
    try {
      const { sha256 } = key;
      await sweepStaging(key.cache, key.image, { env, held: sha256 });
      return lockedEntry(key, env, held);
    } catch (error) {
      held[Symbol.dispose]();
      throw error;
    }
  } catch (cause) {
    throw asCacheError(cause, dir);
  }
}

function lockedEntry(
  key: CacheKey,
  env: Environment,
  held: Disposable,
): LockedEntry {
  return {
    async stage() {
      try {
        return await stage(key, env);
      } catch (cause) {
        throw asCacheError(cause, key.cache);
      }
    },
    renew: (cached) => deniedAs(undefined, renew(key, env, cached)),
    remove: () => takeAway(key),
    [Symbol.dispose]: () => held[Symbol.dispose](),
  };
}

async function renew(
  key: CacheKey,
  env: Environment,
  { path, record, found }: CachedFile,
) {
  const file = basename(path);
  const digest = asDigest(key.sha256);
  const source = record?.source ?? "unknown";
  const verified = new Date().toISOString();
  const { boot } = record ?? {};
  const renewed = { file, digest, source, verified, ...found, boot };
  await using staging = await stage(key, env);
  await writeRecord(entryDir(key), renewed, staging.dir);
}

/**
 * Makes a typed error of a failure to write the cache.
 *
 * @param cause What was thrown.
 * @param dir Where.
 * @returns `cache_unwritable` where the system says no, else the usual.
 */
export function asCacheError(cause: unknown, dir: string): ToolsmithError {
  const code = "cache_unwritable";
  const what = `Cannot write to the cache at ${dir}`;
  const hint =
    "check its owner and mode, or put it elsewhere: TOOLSMITH_CACHE=DIR";
  // What lies in the place of the lock.
  if (cause instanceof ToolsmithError && cause.code === "file_unreadable") {
    return new ToolsmithError(code, `${what}: ${cause.message}`, {
      hint,
      cause,
    });
  }
  return toToolsmithError(systemError(cause, { code, what, hint }));
}

function unusable(dir: string, why: string, hint: string): ToolsmithError {
  return new ToolsmithError(
    "cache_unwritable",
    `Cannot write to the cache at ${dir}: ${why}`,
    { hint },
  );
}

async function findImage(dir: string): Promise<string | undefined> {
  try {
    for await (const { name, isFile } of Deno.readDir(dir)) {
      if (isFile && /\.qcow2$/i.test(name)) return name;
    }
  } catch (error) {
    const none = error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.NotADirectory;
    if (!none) throw error;
  }
  return undefined;
}
