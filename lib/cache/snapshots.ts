/**
 * Saved machines beside an image: where they lie, and which of them fits.
 *
 *     <entry>/machines/<key>.json       what was saved, and the files as they were
 *     <entry>/machines/<key>.state      memory and devices, 0600
 *     <entry>/machines/<key>.qcow2      what the guest wrote to its disk, if it did
 *     <entry>/machines/.staging-<key>-<id>/
 *     <entry>/machines/.<key>.lock
 *
 * @module
 */
import { join } from "@std/path";
import { type Sha256, sha256OfText } from "../system/digest.ts";
import {
  type Fingerprint,
  fingerprint,
  isSame,
  removeTree,
  syncToDisk,
} from "../system/files.ts";
import { tryLock } from "../system/lock.ts";

/** A saved machine that can be restored. */
export interface Snapshot {
  /** Its key. */
  key: string;
  /** The file that QEMU reads. */
  path: string;
  /** The disk as the guest had left it; absent if it had written nothing. */
  disk?: string;
  /** Size of all its files, in bytes. */
  bytes: number;
  /** When it was saved, as an ISO 8601 time; tells it from another. */
  saved: string;
  /** When it was last used, as an ISO 8601 time. */
  used: string;
}

/** A directory for a machine that is being saved; disposing it removes it. */
export interface SnapshotStaging extends AsyncDisposable {
  /** The file for memory and devices. */
  state: string;
  /** The file for the disk, if the guest has written to it. */
  disk: string;
  /** Puts what was written into its place, whole or not at all. */
  place(): Promise<Snapshot>;
}

/** The files of a state as they were when it was saved. */
interface SnapshotMetadata {
  state: Fingerprint;
  disk?: Fingerprint;
}

/**
 * Makes the key of a state from all that has to match.
 *
 * @param parts The image's digest, QEMU, the machine, the host's processor.
 * @returns 64 digits of hex.
 */
export function snapshotKey(parts: Record<string, unknown>): Promise<Sha256> {
  return sha256OfText(JSON.stringify(parts));
}

/**
 * Finds a saved machine. One whose files are not what was saved is never tried.
 *
 * Needs `--allow-read` for the directory.
 *
 * @param dir The directory of saved machines.
 * @param key Which one.
 * @returns The state; `"damaged"` where its files were changed; `undefined`
 * where there is none.
 */
export async function findSnapshot(
  dir: string,
  key: string,
): Promise<Snapshot | "damaged" | undefined> {
  const path = join(dir, `${key}.state`);
  const disk = join(dir, `${key}.qcow2`);
  const metadata = join(dir, `${key}.json`);
  const state = await fingerprint(path);
  if (!state) return undefined;
  const expected = await readMetadata(metadata);
  const kept = expected?.disk ? await fingerprint(disk) : undefined;
  if (!isSame(state, expected?.state) || !isSame(kept, expected?.disk)) {
    // It may have been removed meanwhile.
    return await fingerprint(path) ? "damaged" : undefined;
  }
  return {
    key,
    path,
    bytes: (state.size ?? 0) + (kept?.size ?? 0),
    saved: isoTime(state.mtime),
    used: isoTime((await fingerprint(metadata))?.mtime),
    ...kept ? { disk } : {},
  };
}

/**
 * Lists the saved machines of an image.
 *
 * Needs `--allow-read` for the directory.
 *
 * @param dir The directory of saved machines.
 * @returns Those that can be restored, and those that are damaged.
 */
export async function listSnapshots(dir: string): Promise<Snapshot[]> {
  const found: Snapshot[] = [];
  for (const name of await names(dir)) {
    const key = /^([0-9a-f]{64})\.state$/.exec(name)?.[1];
    if (!key) continue;
    const path = join(dir, name);
    const state = await findSnapshot(dir, key);
    if (state === "damaged") {
      const { size, mtime } = await fingerprint(path) ?? {};
      const time = isoTime(mtime);
      found.push({ key, path, bytes: size ?? 0, saved: time, used: time });
    } else if (state) found.push(state);
  }
  return found;
}

/**
 * Removes a saved machine. One that is being restored is read to its end.
 *
 * Needs `--allow-read` and `--allow-write` for the directory.
 *
 * @param dir The directory of saved machines.
 * @param state The one that was found; another of its key stays.
 * @returns Whether it was removed; not while another process saves its key.
 */
export async function removeSnapshot(
  dir: string,
  state: { key: string; saved?: string },
): Promise<boolean> {
  const { key, saved } = state;
  using held = await hold(dir, key);
  if (!held) return false;
  const now = await findSnapshot(dir, key);
  if (now === undefined) return false;
  if (now !== "damaged" && now.saved !== saved) return false;
  await removeFiles(dir, key);
  return true;
}

/**
 * Notes that a saved machine was used, for prune to see.
 *
 * Needs `--allow-write` for the directory; without it nothing is noted.
 *
 * @param dir The directory of saved machines.
 * @param key Which one.
 */
export async function touchSnapshot(dir: string, key: string) {
  const now = new Date();
  await Deno.utime(join(dir, `${key}.json`), now, now).catch(() => {});
}

/**
 * Makes room for a machine that is to be saved, under the lock of its key.
 *
 * Needs `--allow-read` and `--allow-write` for the directory.
 *
 * @param dir The directory of saved machines.
 * @param key Which one.
 * @returns Where to write; `undefined` while another process saves the same.
 */
export async function stageSnapshot(
  dir: string,
  key: string,
): Promise<SnapshotStaging | undefined> {
  await Deno.mkdir(dir, { recursive: true, mode: 0o700 });
  const held = await tryLock(lockFile(dir, key));
  if (!held) return undefined;
  const id = crypto.randomUUID().slice(0, 8);
  const staging = join(dir, `.staging-${key}-${id}`);
  try {
    // Under the lock, what others left has no owner any more.
    await removeStaging(dir, key);
    await Deno.mkdir(staging, { mode: 0o700 });
  } catch (error) {
    held[Symbol.dispose]();
    throw error;
  }
  const files = ["state", "qcow2", "json"] as const;
  const [state, disk, metadata] = files.map((name) => join(staging, name));
  return {
    state,
    disk,
    async place() {
      await syncToDisk(state);
      const kept = await fingerprint(disk);
      if (kept) await syncToDisk(disk);
      await removeFiles(dir, key);
      try {
        for (const name of kept ? ["qcow2", "state"] : ["state"]) {
          const from = join(staging, name);
          await Deno.rename(from, join(dir, `${key}.${name}`));
        }
        // Renaming changes the times that the note holds: it comes last.
        const written: SnapshotMetadata = {
          state: (await fingerprint(join(dir, `${key}.state`)))!,
          disk: await fingerprint(join(dir, `${key}.qcow2`)),
        };
        const text = JSON.stringify(written);
        await Deno.writeTextFile(metadata, text, { mode: 0o600 });
        await syncToDisk(metadata);
        await Deno.rename(metadata, join(dir, `${key}.json`));
      } catch (error) {
        await removeFiles(dir, key);
        throw error;
      }
      return await findSnapshot(dir, key) as Snapshot;
    },
    async [Symbol.asyncDispose]() {
      await removeTree(staging);
      held[Symbol.dispose]();
    },
  };
}

/**
 * Removes what interrupted saves left behind.
 *
 * Needs `--allow-read` and `--allow-write` for the directory.
 *
 * @param dir The directory of saved machines.
 */
export async function sweepSnapshots(dir: string) {
  const keys = (await names(dir)).flatMap((name) =>
    /^(?:\.staging-)?([0-9a-f]{64})[-.]/.exec(name)?.[1] ?? []
  );
  for (const key of new Set(keys)) {
    using free = await hold(dir, key);
    if (!free) continue;
    await removeStaging(dir, key);
    const state = await fingerprint(join(dir, `${key}.state`));
    if (!state) await removeFiles(dir, key);
  }
}

/** The lock of a key; `undefined` if another has it, or the directory is gone. */
async function hold(
  dir: string,
  key: string,
): Promise<Disposable | undefined> {
  try {
    return await tryLock(lockFile(dir, key));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

function lockFile(dir: string, key: string): string {
  return join(dir, `.${key}.lock`);
}

async function readMetadata(
  path: string,
): Promise<Partial<SnapshotMetadata> | undefined> {
  try {
    return JSON.parse(await Deno.readTextFile(path)) ?? undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return undefined;
  }
}

async function removeStaging(dir: string, key: string) {
  for (const name of await names(dir)) {
    if (name.startsWith(`.staging-${key}-`)) {
      await removeTree(join(dir, name));
    }
  }
}

/** The note goes last: without it the others are damaged, not forgotten. */
async function removeFiles(dir: string, key: string) {
  for (const ending of ["state", "qcow2", "json"]) {
    await removeTree(join(dir, `${key}.${ending}`));
  }
}

function isoTime(time: number | null = 0): string {
  return new Date(time ?? 0).toISOString();
}

async function names(dir: string): Promise<string[]> {
  const found: string[] = [];
  try {
    for await (const { name } of Deno.readDir(dir)) found.push(name);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return found.sort();
}
