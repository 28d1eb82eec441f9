/**
 * Cache entries. An entry appears complete and verified, or not at all.
 *
 *     <cache>/<image>/<sha256>/<file>.qcow2       the image, 0444, never modified
 *     <cache>/<image>/<sha256>/verified.json      verification record
 *     <cache>/<image>/.staging-<sha256>-<id>/     download in progress
 *     <cache>/<image>/.<sha256>.lock              flock
 *     <cache>/.staging.key                        in a cache outside workspaces
 *
 * No symbolic link below the cache's directory is followed.
 */
import { basename, join, resolve } from "../path.ts";
import { sha256ToDigest } from "../system/digest.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { systemError, ToolsmithError, toToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import {
  type FileIdentity,
  isSameFileIdentity,
  orIfDenied,
  orIfMissing,
  readFileIdentity,
} from "../system/files.ts";
import { acquireFileLock } from "../system/lock.ts";
import {
  symlinkEscapeReason,
  unsafeDirReason,
  untrustedReason,
  workspaceSymlinkReason,
} from "../system/ownership.ts";
import {
  readVerificationRecord,
  type VerificationRecord,
  verificationRecordPath,
  writeVerificationRecord,
} from "./_verification_record.ts";
import {
  type CacheKey,
  createOrResumeStaging,
  entryDir,
  entryLockPath,
  type ImageStaging,
  removeStaleStagingOfEntry,
  removeStaleStagingOfImage,
} from "./_image_staging.ts";

export type { CacheKey, ImageStaging };

/** A cached image, as found without rehashing it. */
export interface CachedImage {
  path: string;
  bytes: number;
  /** Whether the file matches a trusted verification record. */
  trusted: boolean;
  /** Why the record or the image is not trusted: another user could write it. */
  untrustedReason?: string;
  /** The verification record, if it exists and is trusted. */
  verificationRecord?: VerificationRecord;
  fileIdentity: FileIdentity;
}

const PRIVATE_CACHE_HINT =
  "set TOOLSMITH_CACHE=DIR to a directory that only you can write";
const SYMLINKED_CACHE_HINT =
  "remove the symbolic link, or use another cache: --cache DIR or TOOLSMITH_CACHE=DIR";

/**
 * Returns the cache's absolute path, which need not exist: the `cache` option, else
 * `TOOLSMITH_CACHE`, else the workspace's `.toolsmith/cache`. Only that last one must
 * not be a link out of the workspace.
 */
export async function resolveCacheDir(
  root: string,
  { cache, env = processEnvironment }: { cache?: string; env?: Environment } =
    {},
): Promise<string> {
  const given = cache ?? env.get("TOOLSMITH_CACHE");
  if (given) return resolve(given);
  const dir = resolve(root, ".toolsmith", "cache");
  const reason = await workspaceSymlinkReason(dir);
  if (reason) throw cacheUnwritableError(dir, reason, SYMLINKED_CACHE_HINT);
  return dir;
}

export type CacheEntryHandle = ReturnType<typeof cacheEntryHandle>;

/** Returns a handle for an image's cache entry, which may not exist yet. */
export function cacheEntryHandle(
  key: CacheKey,
  { env = processEnvironment }: { env?: Environment } = {},
) {
  const { cache, image, sha256 } = key;
  const imageDir = join(cache, image);
  const [dir, lockPath] = [entryDir(key), entryLockPath(key)];

  /**
   * Looks the image up without rehashing it: the verification record shows whether the
   * file has changed, which `trusted` reports. A record that another user could write
   * is ignored, as is every record without `--allow-sys=uid`.
   */
  async function lookUpImage(): Promise<CachedImage | undefined> {
    if (await symlinkEscapeReason(dir, cache)) return undefined;
    const recordReason = await untrustedReason(verificationRecordPath(dir));
    const record = recordReason ? undefined : await readVerificationRecord(dir);
    const file = record?.file ?? await findQcow2File(dir);
    if (!file) return undefined;
    const path = join(dir, file);
    // A directory, a link or a FIFO is never opened, but replaced.
    const fileIdentity = await readFileIdentity(path);
    if (!fileIdentity) return undefined;
    const { size: bytes } = fileIdentity;
    const reason = recordReason ?? await untrustedReason(path);
    const trusted = !reason && record?.digest === sha256ToDigest(sha256) &&
      isSameFileIdentity(fileIdentity, record);
    const trust = { trusted, untrustedReason: reason };
    return { path, bytes, ...trust, verificationRecord: record, fileIdentity };
  }

  /**
   * Waits for the entry's lock, and emits `lock_wait` if it must wait; then removes stale
   * staging directories of all entries of the image. Refuses a cache in which another
   * user could replace files, or an image directory that is a link.
   */
  async function lock(
    { emit, signal }: { emit?: Emit; signal?: AbortSignal } = {},
  ) {
    const onWait = () => emit?.({ type: "lock_wait", image, path: lockPath });
    const unwritable = (reason: string, hint: string) =>
      cacheUnwritableError(imageDir, reason, hint);
    try {
      const link = await symlinkEscapeReason(imageDir, cache);
      if (link) throw unwritable(link, SYMLINKED_CACHE_HINT);
      // The group must not be able to write, whatever the umask.
      await Deno.mkdir(imageDir, { recursive: true, mode: 0o755 });
      const reason = await unsafeDirReason(cache) ??
        await unsafeDirReason(imageDir);
      if (reason) throw unwritable(reason, PRIVATE_CACHE_HINT);
      using undo = new DisposableStack();
      const held = undo.use(
        await acquireFileLock(lockPath, { onWait, signal }),
      );
      await removeStaleStagingOfImage(cache, image, { env, held: sha256 });
      undo.move();
      return lockedCacheEntry(key, env, held);
    } catch (cause) {
      throw toCacheWriteError(cause, imageDir);
    }
  }

  /**
   * Updates the entry's time, which prune reads, and removes its stale staging
   * directories. A read-only cache is left as it is.
   */
  async function markUsedAndCleanUp(): Promise<void> {
    const now = new Date();
    await Deno.utime(dir, now, now).catch(() => {});
    await removeStaleStagingOfEntry(key).catch(() => {});
  }

  return { dir, lockPath, lookUpImage, lock, markUsedAndCleanUp };
}

/** An entry whose lock this process holds; disposing releases the lock. */
function lockedCacheEntry(key: CacheKey, env: Environment, lock: Disposable) {
  return {
    createOrResumeStaging: () =>
      createOrResumeStaging(key, env).catch((cause) => {
        throw toCacheWriteError(cause, key.cache);
      }),
    /**
     * Writes a verification record for an image that was verified again. In a
     * read-only cache, that is repeated the next time.
     */
    async renewVerificationRecord(
      { path, verificationRecord, fileIdentity }: CachedImage,
      signature?: Record<string, string | undefined>,
    ): Promise<void> {
      const { source = "unknown", boot, update } = verificationRecord ?? {};
      const digest = sha256ToDigest(key.sha256);
      const file = basename(path);
      const found = { file, digest, source, ...fileIdentity };
      const renewed = { ...found, boot, signature, update };
      await using staging = await orIfDenied(createOrResumeStaging(key, env));
      if (!staging) return;
      await orIfDenied(
        writeVerificationRecord(entryDir(key), renewed, staging.dir),
      );
    },
    [Symbol.dispose]: () => lock[Symbol.dispose](),
  };
}

/**
 * Converts a failed cache write to a `ToolsmithError`: `cache_unwritable` if the
 * system denied the write, else the code of the system error.
 */
export function toCacheWriteError(cause: unknown, dir: string): ToolsmithError {
  const code = "cache_unwritable";
  const messagePrefix = `Cannot write to the cache at ${dir}`;
  const hint =
    "check the cache's owner and mode, or use another directory: TOOLSMITH_CACHE=DIR";
  // Something other than a file is in place of the lock file.
  if (cause instanceof ToolsmithError && cause.code === "file_unreadable") {
    const message = `${messagePrefix}: ${cause.message}`;
    return new ToolsmithError(code, message, { hint, cause });
  }
  return toToolsmithError(systemError(cause, { code, messagePrefix, hint }));
}

function cacheUnwritableError(dir: string, reason: string, hint: string) {
  const message = `Cannot write to the cache at ${dir}: ${reason}`;
  return new ToolsmithError("cache_unwritable", message, { hint });
}

async function findQcow2File(dir: string): Promise<string | undefined> {
  const files = await orIfMissing(Array.fromAsync(Deno.readDir(dir))) ?? [];
  return files.find((it) => it.isFile && /\.qcow2$/i.test(it.name))?.name;
}
