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
import type { Sha256 } from "./digest.ts";
import type { Environment } from "./environment.ts";
import { ToolsmithError, toToolsmithError } from "./errors.ts";
import {
  type Fingerprint,
  fingerprint,
  isSame,
  removeTree,
  syncToDisk,
} from "./files.ts";
import { lock, type LockOptions, tryLock } from "./lock.ts";

/** Names an entry of the cache. */
export interface CacheKey {
  /** The cache's folder. */
  cache: string;
  /** The image's name. */
  image: string;
  /** SHA-256 of the image. */
  sha256: Sha256;
}

/** What `verified.json` holds: the file as it was when it was verified. */
export interface Stamp extends Fingerprint {
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
  stamp?: Stamp;
}

/** A folder for an image on its way into the cache. */
export interface Staging extends AsyncDisposable {
  /** Its path, on the cache's filesystem. */
  folder: string;
}

const STAMP = "verified.json";
const UNWRITABLE = ["EROFS", "ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG"];
const STAGING = /^\.staging-([0-9a-f]{64})-/;

/**
 * The cache's folder.
 *
 * @param root The workspace.
 * @param env Read for `TOOLSMITH_CACHE`.
 * @returns What the variable names, or `.toolsmith/cache` in the workspace.
 */
export function cacheFolder(root: string, env: Environment): string {
  return env.get("TOOLSMITH_CACHE") || join(root, ".toolsmith", "cache");
}

/** The folder of an entry. */
export function entryFolder({ cache, image, sha256 }: CacheKey): string {
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
  const folder = entryFolder(key);
  const stamp = await readStamp(folder);
  const file = stamp?.file ?? await findImage(folder);
  if (!file) return undefined;
  const path = join(folder, file);
  // A folder, a link or a pipe is no image: it is replaced, and never opened.
  const now = await fingerprint(path);
  if (!now) return undefined;
  const trusted = stamp?.digest === `sha256:${key.sha256}` &&
    isSame(now, stamp);
  return { path, bytes: now.size, trusted, stamp };
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
  const folder = join(key.cache, key.image);
  try {
    await Deno.mkdir(folder, { recursive: true });
    const held = await lock(lockPath(key), options);
    try {
      await sweepStaging(key.cache, key.image, key.sha256);
      return held;
    } catch (error) {
      held[Symbol.dispose]();
      throw error;
    }
  } catch (cause) {
    throw asCacheError(cause, folder);
  }
}

/** The file of an entry's lock. */
export function lockPath({ cache, image, sha256 }: CacheKey): string {
  return join(cache, image, `.${sha256}.lock`);
}

/**
 * Makes a staging folder for an entry. The caller has the entry's lock.
 *
 * Needs `--allow-write` for the cache.
 *
 * @param key The entry.
 * @returns The folder; disposing it removes it with all it holds.
 */
export async function stage(key: CacheKey): Promise<Staging> {
  const id = crypto.randomUUID().slice(0, 8);
  const name = `.staging-${key.sha256}-${id}`;
  const folder = join(key.cache, key.image, name);
  await Deno.mkdir(folder, { mode: 0o700 });
  return {
    folder,
    [Symbol.asyncDispose]: () => removeTree(folder),
  };
}

/**
 * Puts a verified file into its place: read-only, synced, and in one rename
 * together with its stamp. An entry that is there already is replaced.
 *
 * Needs `--allow-read` and `--allow-write` for the cache.
 *
 * @param key The entry; the caller has its lock.
 * @param staging The folder that holds the file.
 * @param file The file: its path, its name in the cache, where it came from.
 * @returns The image's path in the cache.
 */
export async function place(
  key: CacheKey,
  staging: Staging,
  file: { path: string; name: string; source: string },
): Promise<string> {
  const folder = entryFolder(key);
  const fresh = join(staging.folder, "entry");
  await Deno.mkdir(fresh, { mode: 0o755 });
  const path = join(fresh, file.name);
  await Deno.rename(file.path, path);
  await syncToDisk(path);
  await Deno.chmod(path, 0o444);
  await writeStamp(key, fresh, file.name, file.source);
  await syncToDisk(fresh);
  // A folder cannot be renamed onto one that is not empty: it makes way first.
  const old = join(staging.folder, "old");
  await Deno.rename(folder, old).catch((error) => {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  });
  await Deno.rename(fresh, folder);
  await syncToDisk(join(key.cache, key.image));
  return join(folder, file.name);
}

/**
 * Notes that an entry's image has been verified again.
 *
 * Needs `--allow-read` and `--allow-write` for the cache.
 *
 * @param key The entry; the caller has its lock.
 * @param cached The image.
 */
export async function restamp(key: CacheKey, cached: CachedFile) {
  const folder = entryFolder(key);
  const name = cached.path.slice(folder.length + 1);
  await writeStamp(key, folder, name, cached.stamp?.source ?? "unknown");
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
  await Deno.utime(entryFolder(key), now, now).catch(() => {});
}

/**
 * Removes staging folders that no process fills any more: one whose lock can
 * be had has no owner.
 *
 * Needs `--allow-read` and `--allow-write` for the cache.
 *
 * @param cache The cache's folder.
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
 * @param folder Where.
 * @returns `cache_unwritable` where the system says no, else the usual.
 */
export function asCacheError(cause: unknown, folder: string): ToolsmithError {
  const code = String((cause as { code?: unknown } | null)?.code);
  if (
    cause instanceof Deno.errors.PermissionDenied || UNWRITABLE.includes(code)
  ) {
    return new ToolsmithError(
      "cache_unwritable",
      `Cannot write to the cache at ${folder}: ${(cause as Error).message}`,
      {
        hint:
          "mend its owner and mode, or put it elsewhere: TOOLSMITH_CACHE=DIR",
        cause,
      },
    );
  }
  return toToolsmithError(cause);
}

async function readStamp(folder: string): Promise<Stamp | undefined> {
  try {
    const stamp = JSON.parse(await Deno.readTextFile(join(folder, STAMP)));
    const plain = typeof stamp?.file === "string" &&
      /^[^/\\]+\.qcow2$/i.test(stamp.file);
    return plain ? stamp : undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    // An unreadable stamp is no stamp: the image is verified again.
    return undefined;
  }
}

async function writeStamp(
  key: CacheKey,
  folder: string,
  file: string,
  source: string,
) {
  const now = await fingerprint(join(folder, file));
  if (!now) throw new Deno.errors.NotFound(`${file} is gone from ${folder}`);
  const stamp: Stamp = {
    file,
    digest: `sha256:${key.sha256}`,
    source,
    verified: new Date().toISOString(),
    ...now,
  };
  const path = join(folder, STAMP);
  await Deno.writeTextFile(
    `${path}.new`,
    JSON.stringify(stamp, null, 2) + "\n",
  );
  await syncToDisk(`${path}.new`);
  await Deno.rename(`${path}.new`, path);
}

async function findImage(folder: string): Promise<string | undefined> {
  try {
    for await (const { name, isFile } of Deno.readDir(folder)) {
      if (isFile && /\.qcow2$/i.test(name)) return name;
    }
  } catch (error) {
    const none = error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.NotADirectory;
    if (!none) throw error;
  }
  return undefined;
}
