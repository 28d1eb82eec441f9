/**
 * Staging directories: an image is written here, on the cache's file system, before
 * one rename moves it into the cache.
 *
 *     <cache>/<image>/.staging-<sha256>-<id>/
 */
import { dirname, join } from "../path.ts";
import type { Environment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import { type Digest, type Sha256, sha256ToDigest } from "../system/digest.ts";
import {
  type FileIdentity,
  isSameFileIdentity,
  orIfDenied,
  orIfNotFound,
  readFileIdentity,
  removeTree,
  syncToDisk,
} from "../system/files.ts";
import { readPartRecord } from "../system/part_record.ts";
import { removeUnlockedStagingDir, tryFileLock } from "../system/lock.ts";
import {
  type VerificationRecord,
  writeVerificationRecord,
} from "./_verification_record.ts";
import {
  formatStagingName,
  lockFileName,
  parseStagingName,
  stagingIdSigner,
} from "./_staging_names.ts";

/** Identifies a cache entry. */
export interface CacheKey {
  /** The cache's directory. */
  cache: string;
  /** The image's name. */
  image: string;
  /** SHA-256 of the image. */
  sha256: Sha256;
}

export interface StagedImage
  extends Pick<VerificationRecord, "source" | "boot" | "update" | "signature"> {
  path: string;
  fileName: string;
  hashedFile: FileIdentity;
}

export type ImageStaging = Awaited<ReturnType<typeof createOrResumeStaging>>;

/** How long a partial download is kept after its last byte. */
const PARTIAL_IMAGE_RETENTION_MS = 7 * 24 * 3_600_000;
const READ_ONLY_FILE_MODE = 0o444;

export function entryDir({ cache, image, sha256 }: CacheKey): string {
  return join(cache, image, sha256);
}

export function entryLockPath({ cache, image, sha256 }: CacheKey): string {
  return join(cache, image, lockFileName(sha256));
}

/**
 * Opens the staging directory with this user's partial download of the image, or
 * creates one. The caller holds the entry's lock. Disposing removes the directory,
 * unless it holds a partial download that can be resumed.
 */
export async function createOrResumeStaging(key: CacheKey, env: Environment) {
  const { cache, image, sha256 } = key;
  const partials = await listPartialsOfImage(cache, image, env);
  const digest = sha256ToDigest(sha256);
  let dir = partials.find((partial) => partial.digest === digest)?.path;
  if (!dir) {
    const ids = await stagingIdSigner(cache, image, env);
    dir = stagingDir(key, await ids.createId(sha256));
    await Deno.mkdir(dir, { mode: 0o700 });
  }
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    if (!await readPartRecord(dir)) await removeTree(dir);
  });
  await assertChmodWorks(dir);
  const staged = undo.move();
  return {
    dir,
    commit: (file: StagedImage) => commitToCache(key, dir, file),
    [Symbol.asyncDispose]: () => staged.disposeAsync(),
  };
}

/** Some file systems have no modes: fail before the download. */
async function assertChmodWorks(dir: string): Promise<void> {
  const probe = await Deno.makeTempFile({ dir });
  try {
    await Deno.chmod(probe, READ_ONLY_FILE_MODE);
  } finally {
    await Deno.remove(probe);
  }
}

/** Removes an entry in one rename. */
export async function tryRemoveEntry(
  key: CacheKey,
): Promise<"removed" | "busy" | "denied" | "gone"> {
  try {
    using lock = await tryFileLock(entryLockPath(key));
    if (!lock) return "busy";
    // An unsigned id: the directory is never resumed as a partial download.
    const aside = stagingDir(key, crypto.randomUUID());
    const moved = Deno.rename(entryDir(key), aside).then(() => true);
    if (!await orIfNotFound(moved)) return "gone";
    await orIfDenied(removeTree(aside));
    return "removed";
  } catch (error) {
    if (error instanceof Deno.errors.PermissionDenied) return "denied";
    throw error;
  }
}

/**
 * Removes an image's staging directories that no process uses. This user's partial
 * downloads are kept for seven days. The caller holds the lock of the entry `held`.
 */
export async function removeStaleStagingOfImage(
  cache: string,
  image: string,
  { env, held }: { env: Environment; held?: Sha256 },
) {
  const kept = new Map<Digest, string>();
  const partials = await listPartialsOfImage(cache, image, env);
  for (const { digest, path, used } of partials) {
    const isFresh = Date.now() - Date.parse(used) < PARTIAL_IMAGE_RETENTION_MS;
    if (isFresh && !kept.has(digest)) kept.set(digest, path);
  }
  for (const { sha256, dir } of await listStagingDirs(cache, image)) {
    if (kept.get(sha256ToDigest(sha256)) === dir) continue;
    const lockPath = entryLockPath({ cache, image, sha256 });
    if (sha256 === held) await orIfDenied(removeTree(dir));
    else await removeUnlockedStagingDir(dir, lockPath);
  }
}

/** Removes staging directories that killed processes left for a complete entry. */
export async function removeStaleStagingOfEntry(key: CacheKey): Promise<void> {
  for (const { sha256, dir } of await listStagingDirs(key.cache, key.image)) {
    if (sha256 !== key.sha256) continue;
    await removeUnlockedStagingDir(dir, entryLockPath(key));
  }
}

/** A partial download, which the next transfer of the image resumes. */
export interface PartialImage {
  /** The image's name. */
  image: string;
  /** `sha256:` and the complete image's digest in hex. */
  digest: Digest;
  /** The staging directory that holds the download. */
  path: string;
  /** Downloaded bytes. */
  bytes: number;
  /** Size of the complete image, in bytes. */
  total: number;
  /** When the last byte was written, as an ISO 8601 time. */
  used: string;
}

/**
 * Lists this user's partial downloads of an image, largest first. Directories
 * without this user's MAC in their name are not read.
 */
export async function listPartialsOfImage(
  cache: string,
  image: string,
  env: Environment,
): Promise<PartialImage[]> {
  const found: PartialImage[] = [];
  const ids = await stagingIdSigner(cache, image, env);
  for (const { isDirectory, ...name } of await listStagingDirs(cache, image)) {
    if (!isDirectory || !await ids.isOwn(name)) continue;
    const [path, digest] = [name.dir, sha256ToDigest(name.sha256)];
    const record = await orIfDenied(readPartRecord(path));
    if (record?.digest !== digest) continue;
    const { bytes, size: total } = record;
    const used = record.modifiedAt.toISOString();
    found.push({ image, digest, path, bytes, total, used });
  }
  return found.sort((a, b) => b.bytes - a.bytes);
}

async function listStagingDirs(cache: string, image: string) {
  const entries = await Array.fromAsync(Deno.readDir(join(cache, image)));
  return entries.flatMap(({ name, isDirectory }) => {
    const parsed = parseStagingName(name);
    return parsed
      ? [{ ...parsed, isDirectory, dir: join(cache, image, name) }]
      : [];
  });
}

function stagingDir({ cache, image, sha256 }: CacheKey, id: string): string {
  return join(cache, image, formatStagingName({ sha256, id }));
}

/**
 * Moves a verified image into the cache: read-only, synced, and with its verification
 * record in one rename. Replaces an existing entry, and returns the image's path. A file
 * that was replaced after it was hashed is a `checksum_mismatch`.
 */
async function commitToCache(
  key: CacheKey,
  staging: string,
  { path: stagedPath, fileName, hashedFile, ...verified }: StagedImage,
): Promise<string> {
  const dir = entryDir(key);
  const newEntry = join(staging, "entry");
  await Deno.mkdir(newEntry, { mode: 0o755 });
  const path = join(newEntry, fileName);
  await Deno.rename(stagedPath, path);
  await syncToDisk(path);
  await Deno.chmod(path, READ_ONLY_FILE_MODE);
  const now = await readFileIdentity(path);
  // Rename and chmod have changed the ctime.
  if (!now || !isSameFileIdentity(now, { ...hashedFile, ctime: now.ctime })) {
    const message =
      `Cannot add ${fileName} to the cache: the file was replaced after it was hashed`;
    const hint = "find out which other process writes to the cache";
    throw new ToolsmithError("checksum_mismatch", message, { hint });
  }
  const digest = sha256ToDigest(key.sha256);
  const record = { file: fileName, digest, ...verified, ...now };
  await writeVerificationRecord(newEntry, record, staging);
  await syncToDisk(newEntry);
  // A directory cannot replace one that is not empty: move the old one away.
  await orIfNotFound(Deno.rename(dir, join(staging, "old")));
  await Deno.rename(newEntry, dir);
  await syncToDisk(dirname(dir));
  return join(dir, fileName);
}
