/**
 * Stores snapshots of ready VMs.
 *
 *     <dir>/<key>.json       metadata: the files' identities when they were saved
 *     <dir>/<key>.state      device state, 0600
 *     <dir>/<key>.memory     guest memory, which QEMU maps: sparse, 0600
 *     <dir>/<key>.qcow2      the guest's writes to its disk: an overlay of the image
 *     <dir>/.staging-<key>-<id>/
 *     <dir>/.<key>.lock
 *
 * Restoring a snapshot runs what is in it, so a snapshot is only found if this user
 * or root owns its files, in a private directory of this user.
 */
import { basename, dirname, join } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import {
  allocatedBytes,
  type FileIdentity,
  isFileIdentity,
  isSameFileIdentity,
  listNamesInDir,
  orIfNotFound,
  readFileIdentity,
  readSmallJsonObject,
  removeTree,
  replaceFileAtomically,
  syncToDisk,
  toFileIdentity,
} from "../system/files.ts";
import { createLockedStagingDir, tryFileLock } from "../system/lock.ts";
import {
  currentUid,
  symlinkEscapeReason,
  untrustedReason,
} from "../system/ownership.ts";
import { userCacheDir } from "../system/program_files.ts";
import {
  formatStagingName,
  lockFileName,
  parseStagingName,
} from "./_staging_names.ts";

/** Paths of the files that a VM is restored from. */
export interface SnapshotFiles {
  /** The device state, which QEMU reads. */
  path: string;
  /** The guest's memory, which QEMU maps. */
  memory: string;
  /** The guest's disk: an overlay of the image. */
  disk: string;
}

/** A saved VM that can be restored. */
export interface Snapshot extends SnapshotFiles {
  /** Digest of everything that must match for a restore, in hex. */
  key: string;
  /** Disk space that all files use, in bytes. */
  bytes: number;
  /** When the VM was saved, as an ISO 8601 time; unique among saves of a key. */
  saved: string;
  /** When the snapshot was last used, as an ISO 8601 time. */
  used: string;
}

/** A snapshot's files besides the metadata, in the order in which they are committed. */
const SNAPSHOT_PARTS = ["disk", "memory", "state"] as const;

type SnapshotPart = typeof SNAPSHOT_PARTS[number];
type SnapshotMetadata = Record<SnapshotPart, FileIdentity>;

/** A staging directory for a snapshot, with the paths to write; disposing removes it. */
export interface SnapshotStaging
  extends Record<SnapshotPart, string>, AsyncDisposable {
  dir: string;
  /**
   * Moves all files into the store. On failure the store has no snapshot, or still the
   * previous one.
   */
  commit(): Promise<Snapshot>;
}

const SNAPSHOT_DIR_NAME = "machines";
const MAX_METADATA_BYTES = 64 * 1024;
/** Matches the names of a snapshot's files and staging directories. */
const KEY_IN_FILE_NAME_PATTERN = /^(?:\.staging-)?([0-9a-f]{64})[-.]/;

/**
 * Returns the directory of this user's snapshots of a cached image, which need not
 * exist: beside the image if this user owns the entry and the directory is no link,
 * else in `$XDG_CACHE_HOME/toolsmith` (by default `~/.cache/toolsmith`), if there is a
 * home directory. So users who share an image do not share snapshots.
 */
export async function snapshotDirOf(
  image: string,
  env: Environment = processEnvironment,
): Promise<string | undefined> {
  const entry = dirname(image);
  const beside = join(entry, SNAPSHOT_DIR_NAME);
  if (Deno.build.os === "windows") return beside;
  const stat = await orIfNotFound(Deno.lstat(entry));
  const isOwn = stat?.uid === currentUid() && !await untrustedReason(entry) &&
    // A planted link in a workspace may lead to another directory of this user.
    !await symlinkEscapeReason(beside, entry);
  if (isOwn) return beside;
  const root = userSnapshotsDir(env);
  return root && join(root, basename(entry));
}

/**
 * Returns the directory of this user's snapshots of images in other users' caches,
 * with a subdirectory per image digest; `undefined` without a home directory.
 */
export function userSnapshotsDir(env: Environment): string | undefined {
  const dir = userCacheDir(env);
  return dir && join(dir, SNAPSHOT_DIR_NAME);
}

/** Returns the snapshot store of a directory, which need not exist. */
export function snapshotStore(dir: string): SnapshotStore {
  return new SnapshotStore(dir);
}

/** The snapshots of one image. Needs `--allow-sys=uid`, and access to its directory. */
export class SnapshotStore {
  constructor(readonly dir: string) {}

  /**
   * Finds a snapshot. Returns `"damaged"`, so that nobody restores from it, if its
   * files have changed or another user could write them; `undefined` if the
   * directory is not private to this user.
   */
  async find(key: string): Promise<Snapshot | "damaged" | undefined> {
    const found = await this.#read(key);
    return found?.isDamaged ? "damaged" : found?.snapshot;
  }

  /** Lists all snapshots, including damaged ones. */
  async list(): Promise<Snapshot[]> {
    const snapshots: Snapshot[] = [];
    if (await this.#dirUntrustedReason()) return snapshots;
    for (const name of await listNamesInDir(this.dir)) {
      const key = /^([0-9a-f]{64})\.state$/.exec(name)?.[1];
      const found = key && await this.#read(key);
      if (found) snapshots.push(found.snapshot);
    }
    return snapshots;
  }

  /**
   * Removes a snapshot, unless a newer one has replaced it or another process saves the
   * key; returns whether it was removed. VMs that were restored from it keep running.
   */
  async remove({ key, saved }: Pick<Snapshot, "key"> & { saved?: string }) {
    using lock = await this.#tryLockKey(key);
    const current = lock && await this.#read(key);
    if (!current) return false;
    if (!current.isDamaged && current.snapshot.saved !== saved) return false;
    await this.#removeFiles(key);
    return true;
  }

  /** Updates the time of last use, which prune reads, if the file is writable. */
  async markUsed(key: string): Promise<void> {
    const now = new Date();
    await Deno.utime(this.#metadataPath(key), now, now).catch(() => {});
  }

  /**
   * Creates a staging directory for a snapshot, and holds the key's lock until that is
   * disposed; `undefined` while another process saves the key. Throws
   * `Deno.errors.PermissionDenied` if the directory is not private to this user.
   */
  async createStaging(key: string): Promise<SnapshotStaging | undefined> {
    await Deno.mkdir(this.dir, { recursive: true, mode: 0o700 });
    const reason = await this.#dirUntrustedReason();
    if (reason) throw new Deno.errors.PermissionDenied(reason);
    // A killed process may have left files as large as the guest's memory.
    await this.removeInterruptedSaves();
    const id = crypto.randomUUID().slice(0, 8);
    const dir = join(this.dir, formatStagingName({ sha256: key, id }));
    const lockPath = join(this.dir, lockFileName(key));
    const staging = await createLockedStagingDir(dir, lockPath);
    if (!staging) return undefined;
    const files = { dir, ...partPaths(dir, "") };
    const commit = () => this.#commit(key, files);
    return { ...staging, ...files, commit };
  }

  /**
   * Makes snapshots restorable that were copied here with their modification times, and
   * returns them. Sizes and these times are compared, bytes are not: whoever copied the
   * files is trusted.
   */
  async adoptCopiedSnapshots(): Promise<Snapshot[]> {
    const adopted: Snapshot[] = [];
    for (const { key } of await this.list()) {
      using lock = await this.#tryLockKey(key);
      const found = lock && await this.#read(key);
      if (!found?.isDamaged || found.untrustedReason) continue;
      const { identities, recorded } = found;
      const isCopy = SNAPSHOT_PARTS.every((part) =>
        recorded && identities[part]?.size === recorded[part].size &&
        identities[part].mtime === recorded[part].mtime
      );
      if (!isCopy) continue;
      await this.#writeMetadata(key, identities);
      adopted.push(await this.find(key) as Snapshot);
    }
    return adopted;
  }

  /** Removes staging directories and incomplete snapshots of interrupted saves. */
  async removeInterruptedSaves(): Promise<void> {
    if (await this.#dirUntrustedReason()) return;
    const names = await listNamesInDir(this.dir);
    const keys = names.map((name) => KEY_IN_FILE_NAME_PATTERN.exec(name)?.[1]);
    for (const key of new Set(keys)) {
      if (!key) continue;
      using lock = await this.#tryLockKey(key);
      if (!lock) continue;
      for (const name of names) {
        const isStale = parseStagingName(name)?.sha256 === key;
        if (isStale) await removeTree(join(this.dir, name));
      }
      if (!await this.find(key)) await this.#removeFiles(key);
    }
  }

  /** Moves a snapshot's files into the store; removes all if that fails. */
  async #commit(key: string, staging: Record<"dir" | SnapshotPart, string>) {
    for (const part of SNAPSHOT_PARTS) await syncToDisk(staging[part]);
    await this.#removeFiles(key);
    try {
      for (const part of SNAPSHOT_PARTS) {
        await Deno.rename(staging[part], this.#partPaths(key)[part]);
      }
      // Renaming changes the times in the metadata, so write the metadata last.
      const { identities } = await this.#statParts(key);
      const missing = SNAPSHOT_PARTS.find((part) => !identities[part]);
      if (missing) {
        throw new Deno.errors.NotFound(
          `snapshot ${key} has no ${missing} file`,
        );
      }
      await this.#writeMetadata(key, identities, staging.dir);
      const found = await this.#read(key);
      if (found && !found.isDamaged) return found.snapshot;
      const reason = found?.untrustedReason ??
        `snapshot ${key} changed while it was saved`;
      throw new Deno.errors.PermissionDenied(reason);
    } catch (error) {
      await this.#removeFiles(key);
      throw error;
    }
  }

  async #writeMetadata(key: string, identities: object, tempDir?: string) {
    const [path, text] = [this.#metadataPath(key), JSON.stringify(identities)];
    await replaceFileAtomically(path, text, { mode: 0o600, tempDir });
  }

  /** Reads a snapshot; one without metadata was killed before its last step. */
  async #read(key: string) {
    if (await this.#dirUntrustedReason()) return undefined;
    const { identities, bytes } = await this.#statParts(key);
    const metadataPath = this.#metadataPath(key);
    const json = await readSmallJsonObject(metadataPath, MAX_METADATA_BYTES);
    const recorded = parseSnapshotMetadata(json ?? {});
    // Last, so that a snapshot that is replaced meanwhile does not count as damaged.
    const metadataFile = await readFileIdentity(metadataPath);
    if (!identities.state || !metadataFile) return undefined;
    const untrustedReason = await this.#filesUntrustedReason(key);
    const isDamaged = untrustedReason !== undefined || !recorded ||
      !SNAPSHOT_PARTS.every((part) =>
        isSameFileIdentity(identities[part], recorded[part])
      );
    const { disk, memory, state: path } = this.#partPaths(key);
    const saved = isoModifiedTime(identities.state);
    const used = isoModifiedTime(isDamaged ? identities.state : metadataFile);
    const snapshot = { key, path, memory, disk, bytes, saved, used };
    return { snapshot, isDamaged, untrustedReason, identities, recorded };
  }

  /** Returns the identities of the files that exist, and their total size on disk. */
  async #statParts(key: string) {
    const identities: Partial<SnapshotMetadata> = {};
    let bytes = 0;
    for (const part of SNAPSHOT_PARTS) {
      const stat = await orIfNotFound(Deno.lstat(this.#partPaths(key)[part]));
      if (!stat?.isFile) continue;
      identities[part] = toFileIdentity(stat);
      bytes += allocatedBytes(stat);
    }
    return { identities, bytes };
  }

  #partPaths(key: string) {
    return partPaths(this.dir, `${key}.`);
  }

  #dirUntrustedReason(): Promise<string | undefined> {
    return untrustedReason(this.dir, { requirePrivate: true });
  }

  async #filesUntrustedReason(key: string): Promise<string | undefined> {
    const paths = Object.values(this.#partPaths(key));
    for (const path of [...paths, this.#metadataPath(key)]) {
      const reason = await untrustedReason(path);
      if (reason) return reason;
    }
  }

  #metadataPath(key: string): string {
    return join(this.dir, `${key}.json`);
  }

  /** Returns `undefined` if another process holds the lock, or the directory is missing. */
  #tryLockKey(key: string): Promise<Disposable | undefined> {
    return orIfNotFound(tryFileLock(join(this.dir, lockFileName(key))));
  }

  /** Removes the metadata first: without it there is no snapshot. */
  async #removeFiles(key: string) {
    await removeTree(this.#metadataPath(key));
    for (const path of Object.values(this.#partPaths(key))) {
      await removeTree(path);
    }
  }
}

function partPaths(dir: string, prefix: string): Record<SnapshotPart, string> {
  return {
    disk: join(dir, `${prefix}qcow2`),
    memory: join(dir, `${prefix}memory`),
    state: join(dir, `${prefix}state`),
  };
}

export function parseSnapshotMetadata(
  { disk, memory, state }: Record<string, unknown>,
): SnapshotMetadata | undefined {
  return isFileIdentity(disk) && isFileIdentity(memory) && isFileIdentity(state)
    ? { disk, memory, state }
    : undefined;
}

function isoModifiedTime(file: FileIdentity): string {
  return new Date(file.mtime ?? 0).toISOString();
}
