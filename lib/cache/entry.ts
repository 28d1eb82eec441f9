/**
 * The cache: where images lie, and how they get there. An entry is there whole
 * and verified, or not at all.
 *
 *     <cache>/<image>/<sha256>/<file>.qcow2       0444, never written again
 *     <cache>/<image>/<sha256>/verified.json      what was verified, and when
 *     <cache>/<image>/.staging-<sha256>-<id>/     being filled; same filesystem
 *     <cache>/<image>/.<sha256>.lock              flock
 *
 * @module
 */
import { basename, join } from "../path.ts";
import { asDigest } from "../system/digest.ts";
import type { Environment } from "../environment.ts";
import { ToolsmithError, toToolsmithError } from "../errors.ts";
import { type Fingerprint, fingerprint, isSame } from "../system/files.ts";
import { lock, type LockOptions, tryLock } from "../system/lock.ts";
import { whyUnsafe, whyUntrusted } from "../system/ownership.ts";
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
   * replace what is written.
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

/** Codes of the system, and the lock's own. */
const UNWRITABLE = [
  ..."EROFS ENOTDIR EISDIR EEXIST ENAMETOOLONG".split(" "),
  "file_unreadable",
];

/**
 * The cache's directory.
 *
 * @param root The workspace.
 * @param env Read for `TOOLSMITH_CACHE`.
 * @returns What the variable names, or `.toolsmith/cache` in the workspace.
 */
export function cacheDir(root: string, env: Environment): string {
  return env.get("TOOLSMITH_CACHE") || join(root, ".toolsmith", "cache");
}

/**
 * The place of an image in the cache.
 *
 * @param key The entry.
 * @returns Its methods; nothing is read or made before one is called.
 */
export function cacheEntry(key: CacheKey): ImageEntry {
  const dir = entryDir(key);
  return {
    dir,
    lockPath: lockPath(key),
    lookUp: () => lookUp(key),
    lock: (options) => lockEntry(key, options),
    async tryLock() {
      const held = await tryLock(lockPath(key));
      return held && lockedEntry(key, held);
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
  options: LockOptions = {},
): Promise<LockedEntry> {
  const dir = join(key.cache, key.image);
  try {
    // Not for a group to write, whatever the umask.
    await Deno.mkdir(dir, { recursive: true, mode: 0o755 });
    const why = await whyUnsafe(key.cache) ?? await whyUnsafe(dir);
    if (why) throw notOwn(dir, why);
    const held = await lock(lockPath(key), options);
    try {
      await sweepStaging(key.cache, key.image, key.sha256);
      return lockedEntry(key, held);
    } catch (error) {
      held[Symbol.dispose]();
      throw error;
    }
  } catch (cause) {
    throw asCacheError(cause, dir);
  }
}

function lockedEntry(key: CacheKey, held: Disposable): LockedEntry {
  return {
    async stage() {
      try {
        return await stage(key);
      } catch (cause) {
        throw asCacheError(cause, key.cache);
      }
    },
    renew: (cached) => deniedAs(undefined, renew(key, cached)),
    remove: () => takeAway(key),
    [Symbol.dispose]: () => held[Symbol.dispose](),
  };
}

async function renew(key: CacheKey, { path, record, found }: CachedFile) {
  const file = basename(path);
  const digest = asDigest(key.sha256);
  const source = record?.source ?? "unknown";
  const verified = new Date().toISOString();
  const { boot } = record ?? {};
  const renewed = { file, digest, source, verified, ...found, boot };
  await using staging = await stage(key);
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
  const code = String((cause as { code?: unknown } | null)?.code);
  if (
    cause instanceof Deno.errors.PermissionDenied || UNWRITABLE.includes(code)
  ) {
    return new ToolsmithError(
      "cache_unwritable",
      `Cannot write to the cache at ${dir}: ${(cause as Error).message}`,
      {
        hint:
          "check its owner and mode, or put it elsewhere: TOOLSMITH_CACHE=DIR",
        cause,
      },
    );
  }
  return toToolsmithError(cause);
}

function notOwn(dir: string, why: string): ToolsmithError {
  return new ToolsmithError(
    "cache_unwritable",
    `Cannot write to the cache at ${dir}: ${why}`,
    {
      hint:
        "only its owner fills a cache: put yours elsewhere, TOOLSMITH_CACHE=DIR",
    },
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
