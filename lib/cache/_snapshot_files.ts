/**
 * The files of snapshots: found, listed, removed, put into their place.
 *
 * @module
 */
import { join } from "../path.ts";
import {
  type Fingerprint,
  fingerprint,
  isFingerprint,
  isSame,
  removeTree,
  replaceFile,
  syncToDisk,
} from "../system/files.ts";
import { tryLock } from "../system/lock.ts";
import { whyUntrusted } from "../system/ownership.ts";

/** A machine that was saved and can be restored. */
export interface Snapshot {
  /** Its key. */
  key: string;
  /** The file that QEMU reads. */
  path: string;
  /** The disk as the guest had left it; absent if it had written nothing. */
  disk?: string;
  /** Size of all its files, in bytes. */
  bytes: number;
  /** When it was saved, as an ISO 8601 time; no other of its key has the same. */
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

/** The files of a snapshot as they were when it was saved. */
export interface SnapshotMetadata {
  /** Memory and devices. */
  state: Fingerprint;
  /** The disk, if there is one. */
  disk?: Fingerprint;
}

/** Finds a snapshot, as {@linkcode SnapshotStore.find} says. */
export async function findSnapshot(
  dir: string,
  key: string,
): Promise<Snapshot | "damaged" | undefined> {
  const path = join(dir, `${key}.state`);
  const disk = join(dir, `${key}.qcow2`);
  const metadata = join(dir, `${key}.json`);
  if (await whyUntrusted(dir, { secret: true })) return undefined;
  const state = await fingerprint(path);
  if (!state) return undefined;
  const expected = await readMetadata(metadata);
  const kept = expected?.disk ? await fingerprint(disk) : undefined;
  const whole = isSame(state, expected?.state) && isSame(kept, expected?.disk);
  if (!whole || !await allTrusted([path, metadata, ...kept ? [disk] : []])) {
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

async function allTrusted(paths: string[]): Promise<boolean> {
  for (const path of paths) if (await whyUntrusted(path)) return false;
  return true;
}

/** Lists the snapshots in a directory. */
export async function listSnapshots(dir: string): Promise<Snapshot[]> {
  if (await whyUntrusted(dir, { secret: true })) return [];
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

/** Removes the snapshot that was found. */
export async function removeSnapshot(
  dir: string,
  snapshot: { key: string; saved?: string },
): Promise<boolean> {
  const { key, saved } = snapshot;
  using held = await hold(dir, key);
  if (!held) return false;
  const now = await findSnapshot(dir, key);
  if (now === undefined) return false;
  if (now !== "damaged" && now.saved !== saved) return false;
  await removeFiles(dir, key);
  return true;
}

/** Makes room for a machine that is to be saved. */
export async function stageSnapshot(
  dir: string,
  key: string,
): Promise<SnapshotStaging | undefined> {
  await Deno.mkdir(dir, { recursive: true, mode: 0o700 });
  const why = await whyUntrusted(dir, { secret: true });
  if (why) throw new Deno.errors.PermissionDenied(why);
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
  return {
    state: join(staging, "state"),
    disk: join(staging, "qcow2"),
    place: () => placeSnapshot(dir, key, staging),
    async [Symbol.asyncDispose]() {
      await removeTree(staging);
      held[Symbol.dispose]();
    },
  };
}

/** Moves a snapshot's files to their place; without all of them there is none. */
async function placeSnapshot(dir: string, key: string, staging: string) {
  const disk = await fingerprint(join(staging, "qcow2"));
  const names = disk ? ["qcow2", "state"] : ["state"];
  for (const name of names) await syncToDisk(join(staging, name));
  await removeFiles(dir, key);
  try {
    for (const name of names) {
      await Deno.rename(join(staging, name), join(dir, `${key}.${name}`));
    }
    // Renaming changes the times that the metadata holds: it comes last.
    const state = await fingerprint(join(dir, `${key}.state`));
    if (!state) throw new Deno.errors.NotFound(`${key}.state is no file`);
    const written: SnapshotMetadata = {
      state,
      disk: await fingerprint(join(dir, `${key}.qcow2`)),
    };
    const path = join(dir, `${key}.json`);
    const text = JSON.stringify(written);
    await replaceFile(path, text, { mode: 0o600, via: staging });
  } catch (error) {
    await removeFiles(dir, key);
    throw error;
  }
  return await findSnapshot(dir, key) as Snapshot;
}

/** Removes what interrupted saves left behind. */
export async function sweepSnapshots(dir: string) {
  if (await whyUntrusted(dir, { secret: true })) return;
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
): Promise<SnapshotMetadata | undefined> {
  try {
    return parseMetadata(await Deno.readTextFile(path));
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return undefined;
  }
}

/** Reads the text of a snapshot's metadata; `undefined` where it is none. */
export function parseMetadata(text: string): SnapshotMetadata | undefined {
  try {
    const { state, disk } = JSON.parse(text) ?? {};
    const whole = isFingerprint(state) &&
      (disk === undefined || isFingerprint(disk));
    return whole ? { state, disk } : undefined;
  } catch {
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

/** The metadata goes last: without it the others are damaged, not forgotten. */
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
