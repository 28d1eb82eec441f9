/**
 * Snapshots: machines that were saved when they were ready. Where they lie, and
 * which of them fits.
 *
 *     <dir>/<key>.json       what was saved, and the files as they were
 *     <dir>/<key>.state      devices, and memory that is not mapped, 0600
 *     <dir>/<key>.memory     memory that is mapped, if it is: sparse, 0600
 *     <dir>/<key>.qcow2      what the guest wrote to its disk, over the image
 *     <dir>/.staging-<key>-<id>/
 *     <dir>/.<key>.lock
 *
 * A snapshot is as good as the program that is restored from it: only what this
 * user or root owns, in a directory of this user's alone, is found.
 *
 * @module
 */
import { basename, dirname, join } from "../path.ts";
import {
  type Environment,
  processEnvironment,
  userCacheDir,
} from "../environment.ts";
import { type Sha256, sha256OfText } from "../system/digest.ts";
import { absentAs } from "../system/files.ts";
import { ownUid, whyLinked, whyUntrusted } from "../system/ownership.ts";
import {
  adoptSnapshot,
  findSnapshot,
  listSnapshots,
  removeSnapshot,
  type Snapshot,
  type SnapshotFiles,
  type SnapshotStaging,
  stageSnapshot,
  sweepSnapshots,
} from "./_snapshot_files.ts";

export type { Snapshot, SnapshotFiles, SnapshotStaging };

/** The snapshots of one image. */
export interface SnapshotStore {
  /** Their directory. */
  readonly dir: string;
  /**
   * Finds a snapshot. One whose files are not what was saved, or could have been
   * written by another user, is never tried.
   *
   * Needs `--allow-read` for the directory, and `--allow-sys=uid`.
   *
   * @returns The snapshot; `"damaged"` where its files were changed; `undefined`
   * where there is none, or the directory is not this user's alone.
   */
  find(key: string): Promise<Snapshot | "damaged" | undefined>;
  /** Lists the snapshots, damaged ones included. */
  list(): Promise<Snapshot[]>;
  /**
   * Removes a snapshot. Machines that were restored from it go on.
   *
   * Needs `--allow-read` and `--allow-write` for the directory.
   *
   * @param snapshot The one that was found; another of its key stays.
   * @returns Whether it was removed; not while another process saves its key.
   */
  remove(snapshot: { key: string; saved?: string }): Promise<boolean>;
  /** Notes that a snapshot was used, for prune, where that can be written. */
  touch(key: string): Promise<void>;
  /**
   * Makes room for a machine that is to be saved, under the lock of its key.
   *
   * Needs `--allow-read` and `--allow-write` for the directory.
   *
   * @returns Where to write; `undefined` while another process saves the same.
   * @throws {Deno.errors.PermissionDenied} When the directory is not this user's
   * alone.
   */
  stage(key: string): Promise<SnapshotStaging | undefined>;
  /**
   * Accepts snapshots that were copied here, as archives keep files: with their
   * times of modification. Sizes and these times are compared, the bytes are not:
   * whoever carried them is trusted.
   *
   * Needs `--allow-read` and `--allow-write` for the directory.
   *
   * @returns Those that were accepted, and can be restored now.
   */
  adopt(): Promise<Snapshot[]>;
  /** Removes what interrupted saves left behind. */
  sweep(): Promise<void>;
}

const DIR = "machines";

/**
 * Where this user's snapshots of a cached image lie: beside the image if the
 * entry is this user's own and has no link there, else in
 * `$XDG_CACHE_HOME/toolsmith` (by default `~/.cache/toolsmith`), so that users who
 * share an image share no machine.
 *
 * Needs `--allow-read` for the image, and `--allow-sys=uid`.
 *
 * @param image The image's path in a cache.
 * @param env Read for `XDG_CACHE_HOME` and `HOME`.
 * @returns The directory, which need not be there; `undefined` where no place is
 * this user's own.
 */
export async function snapshotDir(
  image: string,
  env: Environment = processEnvironment,
): Promise<string | undefined> {
  const entry = dirname(image);
  const beside = join(entry, DIR);
  if (Deno.build.os === "windows") return beside;
  const stat = await absentAs(undefined, Deno.lstat(entry));
  const own = stat?.uid === ownUid() && !await whyUntrusted(entry) &&
    // A workspace may come with a link to a directory of this user's.
    !await whyLinked(beside, entry);
  if (own) return beside;
  const home = userSnapshotsDir(env);
  return home && join(home, basename(entry));
}

/**
 * Where this user's snapshots of images in caches of others lie.
 *
 * @param env Read for `XDG_CACHE_HOME` and `HOME`.
 * @returns A directory with one for each image's digest, if there is a home.
 */
export function userSnapshotsDir(env: Environment): string | undefined {
  const dir = userCacheDir(env);
  return dir && join(dir, DIR);
}

/**
 * Makes the key of a snapshot from all that has to match.
 *
 * @param parts The image's digest, QEMU, the machine, the host's processor.
 * @returns 64 digits of hex.
 */
export function snapshotKey(parts: Record<string, unknown>): Promise<Sha256> {
  return sha256OfText(JSON.stringify(parts));
}

/**
 * The snapshots in a directory.
 *
 * @param dir The directory, which need not be there.
 * @returns Its methods; nothing is read or made before one is called.
 */
export function snapshotStore(dir: string): SnapshotStore {
  return {
    dir,
    find: (key) => findSnapshot(dir, key),
    list: () => listSnapshots(dir),
    remove: (snapshot) => removeSnapshot(dir, snapshot),
    async touch(key) {
      const now = new Date();
      await Deno.utime(join(dir, `${key}.json`), now, now).catch(() => {});
    },
    stage: (key) => stageSnapshot(dir, key),
    async adopt() {
      const adopted: Snapshot[] = [];
      for (const { key } of await listSnapshots(dir)) {
        const snapshot = await adoptSnapshot(dir, key);
        if (snapshot) adopted.push(snapshot);
      }
      return adopted;
    },
    sweep: () => sweepSnapshots(dir),
  };
}
