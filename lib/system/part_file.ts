/**
 * A file that is being filled, in any order, and survives its process: beside
 * it lies a record of the bytes that are on the disk.
 *
 *     image.part        the file, as long as the whole will be
 *     image.part.json   its size and digest, and the extents that are durable
 *
 * @module
 */
import { join, relative } from "@std/path";
import {
  addExtent,
  type Extent,
  extentBytes,
  gapsOf,
  parseExtents,
} from "./extents.ts";
import { absentAs } from "./files.ts";
import { writeAll } from "./streams.ts";

/** What a part file is to become. */
export interface PartIdentity {
  /** Size of the whole, in bytes. */
  size: number;
  /** `sha256:` and the digest of the whole in hex. */
  digest: string;
}

/** A part file that is open. */
export interface PartFile extends AsyncDisposable {
  /** Its path. */
  readonly path: string;
  /** Size of the whole, in bytes. */
  readonly size: number;
  /** How many bytes were there when it was opened. */
  readonly kept: number;
  /** How many bytes are there. */
  readonly bytes: number;
  /** The bytes that are not there, in order. */
  gaps(within?: Extent): Extent[];
  /** Opens it for one writer. */
  openWriter(): Promise<PartWriter>;
  /** Reads it from its start, waiting for the bytes that are to come. */
  chunks(signal: AbortSignal): AsyncGenerator<Uint8Array<ArrayBuffer>>;
  /**
   * Notes that a program fills another file of the directory from its start:
   * whoever opens the part file next takes over what that has by then.
   */
  expect(path: string): Promise<void>;
  /** Takes over, as its first bytes, all that another file has. */
  adopt(path: string): Promise<void>;
  /** Forgets all that is there. */
  clear(): Promise<void>;
  /** Ends it as a part file: its record is removed, the file stays. */
  finish(): Promise<void>;
}

/** One writer to a part file. */
export interface PartWriter extends Disposable {
  /** Writes bytes at a position. */
  write(position: number, bytes: Uint8Array): Promise<void>;
}

/** Names of the file and of its record. */
export const PART = "image.part";
export const PART_RECORD = "image.part.json";

/** A sync begins when so many bytes have come since the one before. */
const SYNC_BYTES = 4 * 1024 * 1024;
const CHUNK = 1024 * 1024;
const PRIVATE = 0o600;

/**
 * Opens a part file, or goes on with the one that is there. What is written is
 * synced while more arrives, so that little is lost with the process, and
 * little is left to sync at the end. Disposing it keeps what is there.
 *
 * Needs `--allow-read` and `--allow-write` for the directory.
 *
 * @param dir The directory; the caller alone works in it.
 * @param identity What the file is to become; one of another is replaced.
 * @returns The file.
 */
export async function openPart(
  dir: string,
  { size, digest }: PartIdentity,
): Promise<PartFile> {
  const path = join(dir, PART);
  const recordPath = join(dir, PART_RECORD);
  const record = await readPartRecord(dir);
  const found = record?.digest === digest && record.size === size;
  let there: Extent[] = found ? record.extents : [];
  let synced = extentBytes(there);
  let kept = synced;
  let syncing: Promise<void> | undefined;
  let failure: unknown;
  let finished = false;
  let arrival = Promise.withResolvers<void>();
  const file = await Deno.open(path, {
    read: true,
    write: true,
    create: true,
    mode: PRIVATE,
  });
  if (!found) await file.truncate(0);
  await file.truncate(size);

  async function save(extents: Extent[], filled?: string) {
    const text = JSON.stringify({ size, digest, extents, filled });
    const fresh = `${recordPath}.new`;
    await Deno.writeTextFile(fresh, text, { mode: PRIVATE });
    await Deno.rename(fresh, recordPath);
  }
  async function sync() {
    const extents = there;
    await file.syncData();
    await save(extents);
    synced = extentBytes(extents);
  }
  async function adopt(from: string) {
    const stat = await absentAs(undefined, Deno.lstat(from));
    if (!stat?.isFile || stat.size > size) return;
    // A copy: the program may still be writing.
    await Deno.copyFile(from, path);
    await file.truncate(size);
    there = [];
    arrived([0, stat.size]);
    await sync();
  }
  function syncSoon() {
    if (syncing || extentBytes(there) - synced < SYNC_BYTES) return;
    syncing = sync()
      // The next write, or the end, reports it.
      .catch((error) => failure = error)
      .finally(() => syncing = undefined);
  }
  function arrived(extent: Extent) {
    there = addExtent(there, extent);
    arrival.resolve();
    arrival = Promise.withResolvers();
  }

  if (found && record.filled !== undefined) {
    await adopt(join(dir, record.filled));
    kept = extentBytes(there);
  }
  return {
    path,
    size,
    get kept() {
      return kept;
    },
    get bytes() {
      return extentBytes(there);
    },
    gaps: (within = [0, size]) => gapsOf(there, within),
    async openWriter() {
      const own = await Deno.open(path, { write: true });
      let at = 0;
      return {
        async write(position, bytes) {
          if (failure) throw failure;
          if (position !== at) await own.seek(position, Deno.SeekMode.Start);
          await writeAll(own, bytes);
          at = position + bytes.length;
          arrived([position, at]);
          syncSoon();
        },
        [Symbol.dispose]: () => own.close(),
      };
    },
    async *chunks(signal) {
      using own = await Deno.open(path);
      const buffer = new Uint8Array(CHUNK);
      const aborted = Promise.withResolvers<never>();
      aborted.promise.catch(() => {});
      const abort = () => aborted.reject(signal.reason);
      signal.addEventListener("abort", abort, { once: true });
      try {
        for (let position = 0; position < size;) {
          signal.throwIfAborted();
          const [first] = there;
          const end = first?.[0] === 0 ? first[1] : 0;
          if (end <= position) {
            await Promise.race([arrival.promise, aborted.promise]);
            continue;
          }
          const want = Math.min(end - position, CHUNK);
          const count = await own.read(buffer.subarray(0, want));
          if (count === null) throw new Error(`${path} was cut short`);
          position += count;
          yield buffer.subarray(0, count);
        }
      } finally {
        signal.removeEventListener("abort", abort);
      }
    },
    expect: (path) => save(there, relative(dir, path)),
    adopt,
    async clear() {
      await syncing;
      there = [];
      synced = kept = 0;
      await absentAs(undefined, Deno.remove(recordPath));
      await file.truncate(0);
      await file.truncate(size);
    },
    async finish() {
      await syncing;
      if (failure) throw failure;
      finished = true;
      await absentAs(undefined, Deno.remove(recordPath));
    },
    async [Symbol.asyncDispose]() {
      try {
        await syncing;
        if (!finished && extentBytes(there) > 0) await sync();
      } catch {
        // What stopped the transfer is reported; the older record stays good.
      } finally {
        file.close();
      }
    },
  };
}

/** What a record says. */
export interface PartRecord extends PartIdentity {
  /** The bytes that are on the disk. */
  extents: Extent[];
  /** Another file of the directory that a program has filled from its start. */
  filled?: string;
  /** How many bytes are there, in whichever of the two. */
  bytes: number;
  /** When the last of them came. */
  used: Date;
}

/**
 * Reads what a part file in a directory has.
 *
 * Needs `--allow-read` for the directory.
 *
 * @param dir The directory.
 * @returns Its record; `undefined` where there is nothing to go on with.
 */
export async function readPartRecord(
  dir: string,
): Promise<PartRecord | undefined> {
  const path = join(dir, PART_RECORD);
  const part = await absentAs(undefined, Deno.lstat(join(dir, PART)));
  const stat = await absentAs(undefined, Deno.lstat(path));
  if (!part?.isFile || !stat?.isFile) return undefined;
  const { size, digest, extents, filled } = parseRecord(
    await Deno.readTextFile(path),
  );
  const known = parseExtents(extents, part.size);
  if (size !== part.size || !known || typeof digest !== "string") {
    return undefined;
  }
  const record = { size, digest, extents: known };
  const used = stat.mtime ?? new Date(0);
  if (typeof filled !== "string") {
    return { ...record, bytes: extentBytes(known), used };
  }
  const other = await absentAs(undefined, Deno.lstat(join(dir, filled)));
  return other?.isFile
    ? { ...record, filled, bytes: other.size, used: other.mtime ?? used }
    : undefined;
}

function parseRecord(text: string): Record<string, unknown> {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}
