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
import {
  type Fingerprint,
  fingerprint,
  isSame,
  removeTree,
  syncToDisk,
} from "./files.ts";
import { tryLock } from "./lock.ts";

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
  /** When it was saved, as an ISO 8601 time; tells it from another. */
  saved: string;
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
  const expected = await readNote(note);
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
    used: isoTime((await fingerprint(note))?.mtime),
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
 * Needs `--allow-read` and `--allow-write` for the folder.
 *
 * @param folder The folder of saved machines.
 * @param state The one that was found; another of its key stays.
 * @returns Whether it was removed; not while another process saves its key.
 */
export async function removeState(
  folder: string,
  state: { key: string; saved?: string },
): Promise<boolean> {
  const { key, saved } = state;
  using held = await hold(folder, key);
  if (!held) return false;
  const now = await findState(folder, key);
  if (now === undefined) return false;
  if (now !== "damaged" && now.saved !== saved) return false;
  await removeFiles(folder, key);
  return true;
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
  const id = crypto.randomUUID().slice(0, 8);
  const staging = join(folder, `.staging-${key}-${id}`);
  try {
    // Under the lock, what others left has no owner any more.
    await removeStaging(folder, key);
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
      await syncToDisk(state);
      const kept = await fingerprint(disk);
      if (kept) await syncToDisk(disk);
      await removeFiles(folder, key);
      try {
        for (const name of kept ? ["qcow2", "state"] : ["state"]) {
          const from = join(staging, name);
          await Deno.rename(from, join(folder, `${key}.${name}`));
        }
        // Renaming changes the times that the note holds: it comes last.
        const written: Note = {
          state: (await fingerprint(join(folder, `${key}.state`)))!,
          disk: await fingerprint(join(folder, `${key}.qcow2`)),
        };
        const text = JSON.stringify(written);
        await Deno.writeTextFile(note, text, { mode: 0o600 });
        await syncToDisk(note);
        await Deno.rename(note, join(folder, `${key}.json`));
      } catch (error) {
        await removeFiles(folder, key);
        throw error;
      }
      return await findState(folder, key) as SavedState;
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
 * Needs `--allow-read` and `--allow-write` for the folder.
 *
 * @param folder The folder of saved machines.
 */
export async function sweepStates(folder: string) {
  const keys = (await names(folder)).flatMap((name) =>
    /^(?:\.staging-)?([0-9a-f]{64})[-.]/.exec(name)?.[1] ?? []
  );
  for (const key of new Set(keys)) {
    using free = await hold(folder, key);
    if (!free) continue;
    await removeStaging(folder, key);
    const state = await fingerprint(join(folder, `${key}.state`));
    if (!state) await removeFiles(folder, key);
  }
}

/** The lock of a key; `undefined` if another has it, or the folder is gone. */
async function hold(
  folder: string,
  key: string,
): Promise<Disposable | undefined> {
  try {
    return await tryLock(lockFile(folder, key));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

function lockFile(folder: string, key: string): string {
  return join(folder, `.${key}.lock`);
}

async function readNote(path: string): Promise<Partial<Note> | undefined> {
  try {
    return JSON.parse(await Deno.readTextFile(path)) ?? undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return undefined;
  }
}

async function removeStaging(folder: string, key: string) {
  for (const name of await names(folder)) {
    if (name.startsWith(`.staging-${key}-`)) {
      await removeTree(join(folder, name));
    }
  }
}

/** The note goes last: without it the others are damaged, not forgotten. */
async function removeFiles(folder: string, key: string) {
  for (const ending of ["state", "qcow2", "json"]) {
    await removeTree(join(folder, `${key}.${ending}`));
  }
}

function isoTime(time: number | null = 0): string {
  return new Date(time ?? 0).toISOString();
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
