/**
 * The files of snapshots: found, listed, removed, put into their place.
 *
 * @module
 */
import { join } from "../path.ts";
import {
  fingerprint,
  isSame,
  removeTree,
  replaceFile,
  syncToDisk,
} from "../system/files.ts";
import { tryLock } from "../system/lock.ts";
import { whyUntrusted } from "../system/ownership.ts";
import {
  fileName,
  filesOf,
  type Part,
  PARTS,
  readMetadata,
} from "./_snapshot_metadata.ts";

/** The files that a machine is restored from. */
export interface SnapshotFiles {
  /** The file that QEMU reads: devices, and the memory if that has no file. */
  path: string;
  /** The guest's memory, which QEMU maps; absent if it is in the other file. */
  memory?: string;
  /** The disk as the guest had left it: an overlay of the image. */
  disk: string;
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
  /** The file for the disk: an overlay of the image. */
  disk: string;
  /** Puts what was written into its place, whole or not at all. */
  place(): Promise<Snapshot>;
}

/** Finds a snapshot, as {@linkcode SnapshotStore.find} says. */
export async function findSnapshot(
  dir: string,
  key: string,
): Promise<Snapshot | "damaged" | undefined> {
  if (await whyUntrusted(dir, { secret: true })) return undefined;
  const now = await filesOf(dir, key);
  if (!now.prints.state) return undefined;
  const metadata = join(dir, `${key}.json`);
  const expected = await readMetadata(metadata);
  const parts = PARTS.filter((part) => expected?.[part]);
  const whole = expected !== undefined &&
    parts.every((part) => isSame(now.prints[part], expected[part]));
  const [disk, memory, path] = PARTS
    .map((part) => join(dir, fileName(key, part)));
  const isMapped = parts.includes("memory");
  const files = [path, disk, isMapped ? memory : [], metadata].flat();
  if (!whole || !await allTrusted(files)) {
    // A save that was killed before its last step has left no metadata.
    return await fingerprint(metadata) ? "damaged" : undefined;
  }
  return {
    key,
    path,
    bytes: now.bytes(parts),
    saved: isoTime(now.prints.state.mtime),
    used: isoTime((await fingerprint(metadata))?.mtime),
    disk,
    ...isMapped ? { memory } : {},
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
      const left = await filesOf(dir, key);
      const time = isoTime(left.prints.state?.mtime);
      const bytes = left.bytes(PARTS);
      const disk = join(dir, fileName(key, "disk"));
      found.push({ key, path, disk, bytes, saved: time, used: time });
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

/** Accepts the snapshot of a key that was copied here, as `adopt` says. */
export async function adoptSnapshot(
  dir: string,
  key: string,
): Promise<Snapshot | undefined> {
  using held = await hold(dir, key);
  if (!held || await findSnapshot(dir, key) !== "damaged") return undefined;
  const expected = await readMetadata(join(dir, `${key}.json`));
  const { prints } = await filesOf(dir, key);
  const isCopied = PARTS.every((part) => {
    const [now, before] = [prints[part], expected?.[part]];
    return now?.size === before?.size && now?.mtime === before?.mtime;
  });
  const files = PARTS.filter((part) => prints[part])
    .map((part) => join(dir, fileName(key, part)));
  if (!isCopied || !await allTrusted(files)) return undefined;
  const path = join(dir, `${key}.json`);
  await replaceFile(path, JSON.stringify(prints), { mode: 0o600 });
  return await findSnapshot(dir, key) as Snapshot;
}

/** Makes room for a machine that is to be saved. */
export async function stageSnapshot(
  dir: string,
  key: string,
): Promise<SnapshotStaging | undefined> {
  await Deno.mkdir(dir, { recursive: true, mode: 0o700 });
  const why = await whyUntrusted(dir, { secret: true });
  if (why) throw new Deno.errors.PermissionDenied(why);
  // A killed process may have left as much as a guest's memory.
  await sweepSnapshots(dir);
  const held = await tryLock(lockFile(dir, key));
  if (!held) return undefined;
  const id = crypto.randomUUID().slice(0, 8);
  const staging = join(dir, `.staging-${key}-${id}`);
  try {
    await Deno.mkdir(staging, { mode: 0o700 });
  } catch (error) {
    held[Symbol.dispose]();
    throw error;
  }
  const files = {
    dir: staging,
    state: join(staging, "state"),
    memory: join(staging, "memory"),
    disk: join(staging, "qcow2"),
  };
  let over = false;
  return {
    ...files,
    place: () => placeSnapshot(dir, key, files),
    async [Symbol.asyncDispose]() {
      if (over) return;
      over = true;
      try {
        await removeTree(staging);
      } finally {
        held[Symbol.dispose]();
      }
    },
  };
}

/** Moves a snapshot's files to their place; without all of them there is none. */
async function placeSnapshot(
  dir: string,
  key: string,
  staging: Record<"dir" | Part, string>,
) {
  const written: Part[] = [];
  for (const part of PARTS) {
    const there = await fingerprint(staging[part]);
    if (there || part !== "memory") written.push(part);
  }
  for (const part of written) await syncToDisk(staging[part]);
  await removeFiles(dir, key);
  try {
    for (const part of written) {
      await Deno.rename(staging[part], join(dir, fileName(key, part)));
    }
    // Renaming changes the times that the metadata holds: it comes last.
    const { prints } = await filesOf(dir, key);
    if (!prints.state) {
      throw new Deno.errors.NotFound(`${key}.state is no file`);
    }
    const path = join(dir, `${key}.json`);
    const text = JSON.stringify(prints);
    await replaceFile(path, text, { mode: 0o600, via: staging.dir });
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
    if (!await findSnapshot(dir, key)) await removeFiles(dir, key);
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

async function removeStaging(dir: string, key: string) {
  for (const name of await names(dir)) {
    if (name.startsWith(`.staging-${key}-`)) {
      await removeTree(join(dir, name));
    }
  }
}

/** The metadata goes first: without it there is no snapshot. */
async function removeFiles(dir: string, key: string) {
  for (const ending of ["json", "state", "memory", "qcow2"]) {
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
