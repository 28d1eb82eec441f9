/**
 * The files of snapshots: found, listed, removed, put into their place.
 *
 * @module
 */
import { join } from "../path.ts";
import {
  bytesOnDisk,
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

/** The files that a machine is restored from. */
export interface SnapshotFiles {
  /** The file that QEMU reads: devices, and the memory if that has no file. */
  path: string;
  /** The guest's memory, which QEMU maps; absent if it is in the other file. */
  memory?: string;
  /** The disk as the guest had left it; absent if it had written nothing. */
  disk?: string;
}

/** A machine that was saved and can be restored. */
export interface Snapshot extends SnapshotFiles {
  /** Its key. */
  key: string;
  /** What all its files take on the host's disk, in bytes. */
  bytes: number;
  /** When it was saved, as an ISO 8601 time; no other of its key has the same. */
  saved: string;
  /** When it was last used, as an ISO 8601 time. */
  used: string;
}

/** A directory for a machine that is being saved; disposing it removes it. */
export interface SnapshotStaging extends AsyncDisposable {
  /** The directory. */
  dir: string;
  /** The file for devices, and for memory that is not in a file of its own. */
  state: string;
  /** The file for memory that is mapped. */
  memory: string;
  /** The file for the disk, if the guest has written to it. */
  disk: string;
  /** Puts what was written into its place, whole or not at all. */
  place(): Promise<Snapshot>;
}

/** The files of a snapshot as they were when it was saved. */
export interface SnapshotMetadata {
  /** Devices, and memory that is not in a file of its own. */
  state: Fingerprint;
  /** Memory that is mapped, if it is. */
  memory?: Fingerprint;
  /** The disk, if there is one. */
  disk?: Fingerprint;
}

/** The files besides the metadata, in the order in which they are placed. */
const PARTS = ["qcow2", "memory", "state"] as const;

/** Finds a snapshot, as {@linkcode SnapshotStore.find} says. */
export async function findSnapshot(
  dir: string,
  key: string,
): Promise<Snapshot | "damaged" | undefined> {
  if (await whyUntrusted(dir, { secret: true })) return undefined;
  const now = await fingerprints(dir, key);
  if (!now.state) return undefined;
  const metadata = join(dir, `${key}.json`);
  const expected = await readMetadata(metadata);
  const whole = expected !== undefined && isSame(now.state, expected.state) &&
    (!expected.disk || isSame(now.disk, expected.disk)) &&
    (!expected.memory || isSame(now.memory, expected.memory));
  const path = join(dir, `${key}.state`);
  const disk = expected?.disk && join(dir, `${key}.qcow2`);
  const memory = expected?.memory && join(dir, `${key}.memory`);
  const files = [path, disk ?? [], memory ?? []].flat();
  if (!whole || !await allTrusted([...files, metadata])) {
    // It may have been removed meanwhile.
    return await fingerprint(path) ? "damaged" : undefined;
  }
  return {
    key,
    path,
    bytes: await totalBytes(files),
    saved: isoTime(now.state.mtime),
    used: isoTime((await fingerprint(metadata))?.mtime),
    ...disk ? { disk } : {},
    ...memory ? { memory } : {},
  };
}

/** The parts that are there, as they are. */
async function fingerprints(
  dir: string,
  key: string,
): Promise<Partial<SnapshotMetadata>> {
  const [disk, memory, state] = await Promise.all(
    PARTS.map((part) => fingerprint(join(dir, `${key}.${part}`))),
  );
  return { state, memory, disk };
}

async function totalBytes(paths: string[]): Promise<number> {
  const sizes = await Promise.all(paths.map(bytesOnDisk));
  return sizes.reduce((sum, size) => sum + size, 0);
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
      const time = isoTime((await fingerprint(path))?.mtime);
      const bytes = await totalBytes(
        PARTS.map((part) => join(dir, `${key}.${part}`)),
      );
      found.push({ key, path, bytes, saved: time, used: time });
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
  let over = false;
  return {
    dir: staging,
    state: join(staging, "state"),
    memory: join(staging, "memory"),
    disk: join(staging, "qcow2"),
    place: () => placeSnapshot(dir, key, staging),
    async [Symbol.asyncDispose]() {
      if (over) return;
      over = true;
      await removeTree(staging);
      held[Symbol.dispose]();
    },
  };
}

/** Moves a snapshot's files to their place; without all of them there is none. */
async function placeSnapshot(dir: string, key: string, staging: string) {
  const written: string[] = [];
  for (const part of PARTS) {
    const there = await fingerprint(join(staging, part));
    if (there || part === "state") written.push(part);
  }
  for (const part of written) await syncToDisk(join(staging, part));
  await removeFiles(dir, key);
  try {
    for (const part of written) {
      await Deno.rename(join(staging, part), join(dir, `${key}.${part}`));
    }
    // Renaming changes the times that the metadata holds: it comes last.
    const metadata = await fingerprints(dir, key);
    if (!metadata.state) {
      throw new Deno.errors.NotFound(`${key}.state is no file`);
    }
    const path = join(dir, `${key}.json`);
    const text = JSON.stringify(metadata);
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
    const { state, memory, disk } = JSON.parse(text) ?? {};
    const whole = isFingerprint(state) &&
      [memory, disk].every((it) => it === undefined || isFingerprint(it));
    return whole ? { state, memory, disk } : undefined;
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
  for (const ending of ["state", "memory", "qcow2", "json"]) {
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
