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
import { join } from "@std/path";
import type { Sha256 } from "../system/digest.ts";
import type { Environment } from "../environment.ts";
import { ToolsmithError, toToolsmithError } from "../errors.ts";
import {
  type Fingerprint,
  fingerprint,
  isSame,
  removeTree,
  syncToDisk,
} from "../system/files.ts";
import { lock, type LockOptions, tryLock } from "../system/lock.ts";

/** Names an entry of the cache. */
export interface CacheKey {
  /** The cache's directory. */
  cache: string;
  /** The image's name. */
  image: string;
  /** SHA-256 of the image. */
  sha256: Sha256;
}

/** What `verified.json` holds: the file as it was when it was verified. */
export interface VerificationRecord extends Fingerprint {
  /** Name of the image's file. */
  file: string;
  /** `sha256:` and the digest in hex. */
  digest: string;
  /** Where the image came from. */
  source: string;
  /** When it was verified, as an ISO 8601 time. */
  verified: string;
}

/** An image that lies in the cache. */
export interface CachedFile {
  /** Its absolute path. */
  path: string;
  /** Size, in bytes. */
  bytes: number;
  /** Whether it is still, to all appearance, the file that was verified. */
  trusted: boolean;
  /** Its stamp, if there is one. */
  record?: VerificationRecord;
}

/** A directory for an image on its way into the cache. */
export interface Staging extends AsyncDisposable {
  /** Its path, on the cache's filesystem. */
  dir: string;
}

const RECORD = "verified.json";
/** Codes of the system, and the lock's own. */
const UNWRITABLE = [
  ..."EROFS ENOTDIR EISDIR EEXIST ENAMETOOLONG".split(" "),
  "file_unreadable",
];
const STAGING = /^\.staging-([0-9a-f]{64})-/;

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

/** The directory of an entry. */
export function entryDir({ cache, image, sha256 }: CacheKey): string {
  return join(cache, image, sha256);
}

/**
 * Looks an image up, without reading it: its stamp tells whether it was touched
 * since it was verified.
 *
 * Needs `--allow-read` for the cache.
 *
 * @param key The entry.
 * @returns The file, or `undefined` if there is none.
 */
export async function lookUp(key: CacheKey): Promise<CachedFile | undefined> {
  const dir = entryDir(key);
  const record = await readRecord(dir);
  const file = record?.file ?? await findImage(dir);
  if (!file) return undefined;
  const path = join(dir, file);
  // A directory, a link or a pipe is no image: it is replaced, and never opened.
  const now = await fingerprint(path);
  if (!now) return undefined;
  const trusted = record?.digest === `sha256:${key.sha256}` &&
    isSame(now, record);
  return { path, bytes: now.size, trusted, record };
}

/**
 * Takes the lock of an entry, and clears away what dead processes left of it
 * and of its neighbours.
 *
 * Needs `--allow-read` and `--allow-write` for the cache.
 *
 * @param key The entry.
 * @param options What to tell, when to give up.
 * @returns The lock; disposing it releases it.
 * @throws {ToolsmithError} `cache_unwritable`.
 */
export async function lockEntry(
  key: CacheKey,
  options: LockOptions = {},
): Promise<Disposable> {
  const dir = join(key.cache, key.image);
  try {
    await Deno.mkdir(dir, { recursive: true });
    const held = await lock(lockPath(key), options);
    try {
      await sweepStaging(key.cache, key.image, key.sha256);
      return held;
    } catch (error) {
      held[Symbol.dispose]();
      throw error;
    }
  } catch (cause) {
    throw asCacheError(cause, dir);
  }
}

/** The file of an entry's lock. */
export function lockPath({ cache, image, sha256 }: CacheKey): string {
  return join(cache, image, `.${sha256}.lock`);
}

/**
 * Makes a staging directory for an entry. The caller has the entry's lock.
 *
 * Needs `--allow-write` for the cache.
 *
 * @param key The entry.
 * @returns The directory; disposing it removes it with all it holds.
 */
export async function stage(key: CacheKey): Promise<Staging> {
  const id = crypto.randomUUID().slice(0, 8);
  const name = `.staging-${key.sha256}-${id}`;
  const dir = join(key.cache, key.image, name);
  await Deno.mkdir(dir, { mode: 0o700 });
  return {
    dir,
    [Symbol.asyncDispose]: () => removeTree(dir),
  };
}

/**
 * Puts a verified file into its place: read-only, synced, and in one rename
 * together with its stamp. An entry that is there already is replaced.
 *
 * Needs `--allow-read` and `--allow-write` for the cache.
 *
 * @param key The entry; the caller has its lock.
 * @param staging The directory that holds the file.
 * @param file The file: its path, its name in the cache, where it came from.
 * @returns The image's path in the cache.
 */
export async function place(
  key: CacheKey,
  staging: Staging,
  file: { path: string; name: string; source: string },
): Promise<string> {
  const dir = entryDir(key);
  const fresh = join(staging.dir, "entry");
  await Deno.mkdir(fresh, { mode: 0o755 });
  const path = join(fresh, file.name);
  await Deno.rename(file.path, path);
  await syncToDisk(path);
  await Deno.chmod(path, 0o444);
  await writeRecord(key, fresh, file.name, file.source);
  await syncToDisk(fresh);
  // A directory cannot be renamed onto one that is not empty: it makes way first.
  const old = join(staging.dir, "old");
  await Deno.rename(dir, old).catch((error) => {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  });
  await Deno.rename(fresh, dir);
  await syncToDisk(join(key.cache, key.image));
  return join(dir, file.name);
}

/**
 * Notes that an entry's image has been verified again.
 *
 * Needs `--allow-read` and `--allow-write` for the cache.
 *
 * @param key The entry; the caller has its lock.
 * @param cached The image.
 */
export async function renewRecord(key: CacheKey, cached: CachedFile) {
  const dir = entryDir(key);
  const name = cached.path.slice(dir.length + 1);
  await writeRecord(key, dir, name, cached.record?.source ?? "unknown");
}

/**
 * Notes that an entry is in use, for prune to see. A cache that can only be
 * read is fine.
 *
 * Needs `--allow-write` for the cache.
 *
 * @param key The entry.
 */
export async function touch(key: CacheKey) {
  const now = new Date();
  await Deno.utime(entryDir(key), now, now).catch(() => {});
}

/**
 * Removes staging directories that no process fills any more: one whose lock can
 * be had has no owner.
 *
 * Needs `--allow-read` and `--allow-write` for the cache.
 *
 * @param cache The cache's directory.
 * @param image The image's name.
 * @param held The entry whose lock the caller has, if any.
 */
export async function sweepStaging(
  cache: string,
  image: string,
  held?: Sha256,
) {
  for await (const { name } of Deno.readDir(join(cache, image))) {
    const sha256 = STAGING.exec(name)?.[1];
    if (!sha256) continue;
    const path = join(cache, image, name);
    if (sha256 === held) {
      await removeTree(path);
      continue;
    }
    using free = await tryLock(lockPath({ cache, image, sha256 }));
    if (free) await removeTree(path);
  }
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
          "mend its owner and mode, or put it elsewhere: TOOLSMITH_CACHE=DIR",
        cause,
      },
    );
  }
  return toToolsmithError(cause);
}

async function readRecord(
  dir: string,
): Promise<VerificationRecord | undefined> {
  try {
    const record = JSON.parse(await Deno.readTextFile(join(dir, RECORD)));
    const plain = typeof record?.file === "string" &&
      /^[^/\\]+\.qcow2$/i.test(record.file);
    return plain ? record : undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    // An unreadable stamp is no stamp: the image is verified again.
    return undefined;
  }
}

async function writeRecord(
  key: CacheKey,
  dir: string,
  file: string,
  source: string,
) {
  const now = await fingerprint(join(dir, file));
  if (!now) throw new Deno.errors.NotFound(`${file} is gone from ${dir}`);
  const record: VerificationRecord = {
    file,
    digest: `sha256:${key.sha256}`,
    source,
    verified: new Date().toISOString(),
    ...now,
  };
  const path = join(dir, RECORD);
  await Deno.writeTextFile(
    `${path}.new`,
    JSON.stringify(record, null, 2) + "\n",
  );
  await syncToDisk(`${path}.new`);
  await Deno.rename(`${path}.new`, path);
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
