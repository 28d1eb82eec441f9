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
import { lock, tryLock } from "./lock.ts";

/** A saved machine that can be restored. */
export interface SavedState {
  /** Its key. */
  key: string;
  /** The file that QEMU reads. */
  path: string;
  /** The disk as the guest had left it; absent if it had written nothing. */
  disk?: string;
  /** Size of all its files, in bytes. */
  bytes: number;
  /** When it was last used, as an ISO 8601 time. */
  used: string;
}

/** A folder for a machine that is being saved; disposing it removes it. */
export interface StateStaging extends AsyncDisposable {
  /** The file for memory and devices. */
  state: string;
  /** The file for the disk, if the guest has written to it. */
  disk: string;
  /** Puts what was written into its place, whole or not at all. */
  place(): Promise<SavedState>;
}

/** The files of a state as they were when it was saved. */
interface Note {
  state: Fingerprint;
  disk?: Fingerprint;
}

type Fingerprint = Record<"size" | "mtime" | "ctime" | "inode", number | null>;

/**
 * Makes the key of a state from all that has to match.
 *
 * @param parts The image's digest, QEMU, the machine, the host's processor.
 * @returns 64 digits of hex.
 */
export async function stateKey(
  parts: Record<string, unknown>,
): Promise<string> {
  const bytes = new TextEncoder().encode(JSON.stringify(parts));
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return Array.from(
    new Uint8Array(digest),
    (byte) => byte.toString(16).padStart(2, "0"),
  ).join("");
}

/**
 * Finds a saved machine. One whose files are not what was saved is never tried.
 *
 * Needs `--allow-read` for the folder.
 *
 * @param folder The folder of saved machines.
 * @param key Which one.
 * @returns The state; `"damaged"` where its files were changed; `undefined`
 * where there is none.
 */
export async function findState(
  folder: string,
  key: string,
): Promise<SavedState | "damaged" | undefined> {
  const path = join(folder, `${key}.state`);
  const disk = join(folder, `${key}.qcow2`);
  const note = join(folder, `${key}.json`);
  const state = await fingerprint(path);
  if (!state) return undefined;
  let expected: Note;
  try {
    expected = JSON.parse(await Deno.readTextFile(note));
  } catch {
    return "damaged";
  }
  const kept = expected.disk ? await fingerprint(disk) : undefined;
  if (!same(state, expected.state) || !same(kept, expected.disk)) {
    return "damaged";
  }
  const { mtime } = await Deno.stat(note);
  return {
    key,
    path,
    bytes: (state.size ?? 0) + (kept?.size ?? 0),
    used: (mtime ?? new Date(0)).toISOString(),
    ...kept ? { disk } : {},
  };
}

/**
 * Lists the saved machines of an image.
 *
 * Needs `--allow-read` for the folder.
 *
 * @param folder The folder of saved machines.
 * @returns Those that can be restored, and those that are damaged.
 */
export async function listStates(folder: string): Promise<SavedState[]> {
  const found: SavedState[] = [];
  for (const name of await names(folder)) {
    const key = /^([0-9a-f]{64})\.state$/.exec(name)?.[1];
    if (!key) continue;
    const path = join(folder, name);
    const state = await findState(folder, key);
    if (state === "damaged") {
      const { size, mtime } = await Deno.stat(path);
      const used = (mtime ?? new Date(0)).toISOString();
      found.push({ key, path, bytes: size, used });
    } else if (state) found.push(state);
  }
  return found;
}

/**
 * Removes a saved machine. One that is being restored is read to its end.
 *
 * Needs `--allow-write` for the folder.
 *
 * @param folder The folder of saved machines.
 * @param key Which one.
 */
export async function removeState(folder: string, key: string) {
  // The note last: without it the others are damaged, not forgotten.
  for (const ending of ["state", "qcow2", "json"]) {
    await remove(join(folder, `${key}.${ending}`));
  }
}

/**
 * Notes that a saved machine was used, for prune to see.
 *
 * Needs `--allow-write` for the folder; without it nothing is noted.
 *
 * @param folder The folder of saved machines.
 * @param key Which one.
 */
export async function touchState(folder: string, key: string) {
  const now = new Date();
  await Deno.utime(join(folder, `${key}.json`), now, now).catch(() => {});
}

/**
 * Makes room for a machine that is to be saved, under the lock of its key.
 *
 * Needs `--allow-read` and `--allow-write` for the folder.
 *
 * @param folder The folder of saved machines.
 * @param key Which one.
 * @returns Where to write; `undefined` while another process saves the same.
 */
export async function stageState(
  folder: string,
  key: string,
): Promise<StateStaging | undefined> {
  await Deno.mkdir(folder, { recursive: true, mode: 0o700 });
  const held = await tryLock(lockFile(folder, key));
  if (!held) return undefined;
  const prefix = `.staging-${key}-`;
  const staging = join(folder, prefix + crypto.randomUUID().slice(0, 8));
  try {
    // Under the lock, what others left has no owner any more.
    for (const name of await names(folder)) {
      if (name.startsWith(prefix)) await remove(join(folder, name));
    }
    await Deno.mkdir(staging, { mode: 0o700 });
  } catch (error) {
    held[Symbol.dispose]();
    throw error;
  }
  const files = ["state", "qcow2", "json"] as const;
  const [state, disk, note] = files.map((name) => join(staging, name));
  return {
    state,
    disk,
    async place() {
      await sync(state);
      const kept = await fingerprint(disk);
      if (kept) await sync(disk);
      await removeState(folder, key);
      for (const name of kept ? ["qcow2", "state"] : ["state"]) {
        await Deno.rename(join(staging, name), join(folder, `${key}.${name}`));
      }
      // Renaming changes the times that the note holds: it is written after.
      const written: Note = {
        state: (await fingerprint(join(folder, `${key}.state`)))!,
        disk: await fingerprint(join(folder, `${key}.qcow2`)),
      };
      await Deno.writeTextFile(note, JSON.stringify(written), { mode: 0o600 });
      await sync(note);
      await Deno.rename(note, join(folder, `${key}.json`));
      return await findState(folder, key) as SavedState;
    },
    async [Symbol.asyncDispose]() {
      await remove(staging);
      held[Symbol.dispose]();
    },
  };
}

/**
 * Removes what interrupted saves left behind.
 *
 * Needs `--allow-read` and `--allow-write` for the folder.
 *
 * @param folder The folder of saved machines.
 */
export async function sweepStates(folder: string) {
  for (const name of await names(folder)) {
    const key = /^\.staging-([0-9a-f]{64})-/.exec(name)?.[1];
    if (!key) continue;
    using free = await tryLock(lockFile(folder, key));
    if (free) await remove(join(folder, name));
  }
}

/**
 * Waits until nobody saves a machine any more, and removes what was left.
 *
 * Needs `--allow-read` and `--allow-write` for the folder.
 *
 * @param folder The folder of saved machines.
 * @param key Which one.
 */
export async function removeStateLocked(folder: string, key: string) {
  using _held = await lock(lockFile(folder, key));
  await removeState(folder, key);
}

function lockFile(folder: string, key: string): string {
  return join(folder, `.${key}.lock`);
}

async function fingerprint(path: string): Promise<Fingerprint | undefined> {
  try {
    const { isFile, size, mtime, ctime, ino } = await Deno.lstat(path);
    if (!isFile) return undefined;
    const [modified, changed] = [mtime, ctime].map((time) =>
      time?.getTime() ?? null
    );
    return { size, mtime: modified, ctime: changed, inode: ino };
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

function same(a: Fingerprint | undefined, b: Fingerprint | undefined): boolean {
  if (!a || !b) return a === b;
  return a.size === b.size && a.mtime === b.mtime && a.ctime === b.ctime &&
    a.inode === b.inode;
}

async function names(folder: string): Promise<string[]> {
  const found: string[] = [];
  try {
    for await (const { name } of Deno.readDir(folder)) found.push(name);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return found.sort();
}

async function remove(path: string) {
  await Deno.remove(path, { recursive: true }).catch((error) => {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  });
}

async function sync(path: string) {
  using file = await Deno.open(path, { read: true, write: true });
  await file.sync();
}
