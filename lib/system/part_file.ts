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
  identity: PartIdentity,
): Promise<PartFile> {
  const record = await readPartRecord(dir);
  const found = record?.digest === identity.digest &&
    record.size === identity.size;
  const file = await Deno.open(join(dir, PART), {
    read: true,
    write: true,
    create: true,
    mode: PRIVATE,
  });
  const part = new OpenPart(dir, identity, file);
  if (!found) await part.clear();
  else if (record.filled === undefined) part.take(record.extents);
  else await part.adopt(join(dir, record.filled));
  part.kept = part.bytes;
  return part;
}

class OpenPart implements PartFile {
  readonly path: string;
  readonly size: number;
  kept = 0;
  readonly #dir: string;
  readonly #identity: PartIdentity;
  readonly #file: Deno.FsFile;
  /** The bytes that are there, on the disk or not. */
  #there: Extent[] = [];
  /** How many of them the record has. */
  #synced = 0;
  #syncing: Promise<void> | undefined;
  #failure: unknown;
  #finished = false;
  #arrival = Promise.withResolvers<void>();

  constructor(dir: string, identity: PartIdentity, file: Deno.FsFile) {
    this.path = join(dir, PART);
    this.size = identity.size;
    this.#dir = dir;
    this.#identity = identity;
    this.#file = file;
  }

  get bytes(): number {
    return extentBytes(this.#there);
  }

  gaps(within: Extent = [0, this.size]): Extent[] {
    return gapsOf(this.#there, within);
  }

  /** Takes what a record has for what is there. */
  take(extents: Extent[]): void {
    this.#there = extents;
    this.#synced = this.bytes;
  }

  async openWriter(): Promise<PartWriter> {
    const file = await Deno.open(this.path, { write: true });
    let at = 0;
    return {
      write: async (position, bytes) => {
        if (this.#failure) throw this.#failure;
        if (position !== at) await file.seek(position, Deno.SeekMode.Start);
        await writeAll(file, bytes);
        at = position + bytes.length;
        this.#arrived([position, at]);
      },
      [Symbol.dispose]: () => file.close(),
    };
  }

  async *chunks(
    signal: AbortSignal,
  ): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    using file = await Deno.open(this.path);
    const buffer = new Uint8Array(CHUNK);
    const aborted = Promise.withResolvers<never>();
    aborted.promise.catch(() => {});
    const abort = () => aborted.reject(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    try {
      for (let position = 0; position < this.size;) {
        signal.throwIfAborted();
        const [first] = this.#there;
        const end = first?.[0] === 0 ? first[1] : 0;
        if (end <= position) {
          await Promise.race([this.#arrival.promise, aborted.promise]);
          continue;
        }
        const want = Math.min(end - position, CHUNK);
        const count = await file.read(buffer.subarray(0, want));
        if (count === null) throw new Error(`${this.path} was cut short`);
        position += count;
        yield buffer.subarray(0, count);
      }
    } finally {
      signal.removeEventListener("abort", abort);
    }
  }

  expect(path: string): Promise<void> {
    return this.#save(this.#there, relative(this.#dir, path));
  }

  async adopt(from: string): Promise<void> {
    const stat = await absentAs(undefined, Deno.lstat(from));
    if (!stat?.isFile || stat.size > this.size) return;
    // A copy: the program may still be writing.
    await Deno.copyFile(from, this.path);
    await this.#file.truncate(this.size);
    this.#there = addExtent([], [0, stat.size]);
    await this.#sync();
  }

  async clear(): Promise<void> {
    await this.#syncEnd();
    this.#there = [];
    this.#synced = this.kept = 0;
    await absentAs(undefined, Deno.remove(this.#recordPath));
    await this.#file.truncate(0);
    await this.#file.truncate(this.size);
  }

  async finish(): Promise<void> {
    await this.#syncEnd();
    if (this.#failure) throw this.#failure;
    this.#finished = true;
    await absentAs(undefined, Deno.remove(this.#recordPath));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#syncEnd();
      if (!this.#finished && this.bytes > 0) await this.#sync();
    } catch {
      // What stopped the transfer is reported; the older record stays good.
    } finally {
      this.#file.close();
    }
  }

  get #recordPath(): string {
    return join(this.#dir, PART_RECORD);
  }

  #arrived(extent: Extent): void {
    this.#there = addExtent(this.#there, extent);
    this.#arrival.resolve();
    this.#arrival = Promise.withResolvers();
    this.#syncSoon();
  }

  #syncSoon(): void {
    const fresh = this.bytes - this.#synced;
    if (this.#syncing || this.#failure || fresh < SYNC_BYTES) return;
    this.#syncing = this.#sync()
      // The next write, or the end, reports it.
      .catch((error) => this.#failure = error)
      .finally(() => {
        this.#syncing = undefined;
        // On a slow disk much has come meanwhile.
        this.#syncSoon();
      });
  }

  async #syncEnd(): Promise<void> {
    while (this.#syncing) await this.#syncing;
  }

  async #sync(): Promise<void> {
    const extents = this.#there;
    await this.#file.syncData();
    await this.#save(extents);
    this.#synced = extentBytes(extents);
  }

  async #save(extents: Extent[], filled?: string): Promise<void> {
    const { size, digest } = this.#identity;
    const text = JSON.stringify({ size, digest, extents, filled });
    const fresh = `${this.#recordPath}.new`;
    await Deno.writeTextFile(fresh, text, { mode: PRIVATE });
    await Deno.rename(fresh, this.#recordPath);
  }
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
