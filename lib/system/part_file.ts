/**
 * A file that is being filled, in any order, and survives its process: records
 * beside it say which bytes are there.
 *
 * @module
 */
import { join, relative } from "../path.ts";
import { arrivingSha256 } from "./arriving_digest.ts";
import type { DigestEngine, Sha256 } from "./digest.ts";
import { addExtent, type Extent, extentBytes, gapsOf } from "./extents.ts";
import {
  absentAs,
  type Fingerprint,
  fingerprintOf,
  removeTree,
  replaceFile,
} from "./files.ts";
import {
  bootTime,
  PART,
  PART_JOURNAL,
  PART_RECORD,
  type PartIdentity,
  readPartRecord,
} from "./part_record.ts";
import { type StepSync, stepSync } from "./step_sync.ts";
import { writeAllSync } from "./streams.ts";
import { abortable } from "./time.ts";

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
  /**
   * Computes its digest from its start, waiting for the bytes that are to come,
   * until the signal is aborted.
   */
  sha256(signal: AbortSignal): Promise<Sha256>;
  /**
   * Notes that a program fills another file of the directory from its start:
   * whoever opens the part file next takes over what that has by then.
   */
  expect(path: string): Promise<void>;
  /** Takes over, as its first bytes, all that another file has. */
  adopt(path: string): Promise<void>;
  /** Forgets all that is there. */
  clear(): Promise<void>;
  /** Ends it as a part file: its record is removed, the file stays, as returned. */
  finish(): Promise<Fingerprint>;
}

/** One writer to a part file. */
export interface PartWriter extends Disposable {
  /**
   * Writes bytes at a position, and returns when the system has them: to hand
   * them to another thread costs more than the copy.
   */
  write(position: number, bytes: Uint8Array): void;
}

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
 * @param options Who computes its digest: `@std/crypto` unless it says otherwise.
 * @returns The file.
 */
export async function openPart(
  dir: string,
  identity: PartIdentity,
  options: { engine?: DigestEngine } = {},
): Promise<PartFile> {
  const record = await readPartRecord(dir);
  for (const name of [PART, PART_RECORD, PART_JOURNAL]) {
    const path = join(dir, name);
    const stat = await absentAs(undefined, Deno.lstat(path));
    // A link is replaced: what it leads to is neither read nor written.
    if (stat && !stat.isFile) await removeTree(path);
  }
  const found = record?.digest === identity.digest &&
    record.size === identity.size;
  const file = await Deno.open(join(dir, PART), {
    read: true,
    write: true,
    create: true,
    mode: PRIVATE,
  });
  const part = new OpenPart(dir, identity, { ...options, file });
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
  readonly #engine: DigestEngine | undefined;
  /** The bytes that are there, on the disk or not. */
  #there: Extent[] = [];
  #steps = this.#newSteps();
  #finished = false;
  /** Where it is noted what is written; absent where no boot can be told. */
  #journal: Deno.FsFile | undefined;
  #arrival = Promise.withResolvers<void>();

  constructor(
    dir: string,
    identity: PartIdentity,
    { file, engine }: { file: Deno.FsFile; engine?: DigestEngine },
  ) {
    this.path = join(dir, PART);
    this.size = identity.size;
    this.#dir = dir;
    this.#identity = identity;
    this.#file = file;
    this.#engine = engine;
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
    this.#steps = this.#newSteps();
  }

  async openWriter(): Promise<PartWriter> {
    const file = await Deno.open(this.path, { write: true });
    let at = 0;
    return {
      write: (position, bytes) => {
        if (position !== at) file.seekSync(position, Deno.SeekMode.Start);
        writeAllSync(file, bytes);
        at = position + bytes.length;
        this.#arrived([position, at]);
      },
      [Symbol.dispose]: () => file.close(),
    };
  }

  sha256(signal: AbortSignal): Promise<Sha256> {
    const [size, engine] = [this.size, this.#engine];
    const arrivals = () => this.#arrivals(signal);
    return arrivingSha256(this.path, { size, arrivals, engine, signal });
  }

  /** How many bytes there are from the first on, until all are. */
  async *#arrivals(signal: AbortSignal): AsyncGenerator<number> {
    for (let counted = 0; counted < this.size;) {
      signal.throwIfAborted();
      const [first] = this.#there;
      const count = first?.[0] === 0 ? first[1] : 0;
      if (count > counted) yield counted = count;
      else await abortable(this.#arrival.promise, signal);
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
    this.take(addExtent([], [0, stat.size]));
    await this.#sync();
  }

  async clear(): Promise<void> {
    await this.#steps.settled().catch(() => {});
    this.kept = 0;
    this.take([]);
    await this.#forget(PART_RECORD, PART_JOURNAL);
    await this.#file.truncate(0);
    await this.#file.truncate(this.size);
  }

  async finish(): Promise<Fingerprint> {
    await this.#steps.settled();
    this.#finished = true;
    await this.#forget(PART_RECORD, PART_JOURNAL);
    return fingerprintOf(await this.#file.stat());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#steps.settled();
      if (!this.#finished && this.bytes > 0) {
        await this.#sync();
        // All of it is durable now.
        await this.#forget(PART_JOURNAL);
      }
    } catch {
      // What stopped the transfer is reported; the older record stays good.
    } finally {
      this.#journal?.close();
      this.#file.close();
    }
  }

  #arrived(extent: Extent): void {
    this.#there = addExtent(this.#there, extent);
    this.#arrival.resolve();
    this.#arrival = Promise.withResolvers();
    this.#note();
    this.#steps.at(this.bytes);
  }

  /** Notes what is written: all that a killed process leaves is good. */
  #note(): void {
    const booted = bootTime();
    if (booted === undefined) return;
    this.#journal ??= Deno.openSync(join(this.#dir, PART_JOURNAL), {
      write: true,
      create: true,
      mode: PRIVATE,
    });
    const note = { ...this.#identity, extents: this.#there, booted };
    // One write in place: of a longer text before, the rest stands on a line of its own.
    this.#journal.seekSync(0, Deno.SeekMode.Start);
    const line = `${JSON.stringify(note)}\n`;
    writeAllSync(this.#journal, new TextEncoder().encode(line));
  }

  /** Removes what is noted of it. */
  async #forget(...names: string[]): Promise<void> {
    this.#journal?.close();
    this.#journal = undefined;
    for (const name of names) {
      await absentAs(undefined, Deno.remove(join(this.#dir, name)));
    }
  }

  /** A sync ends with a record of what was there when it began. */
  #newSteps(): StepSync {
    return stepSync(() => this.#sync(), this.bytes);
  }

  async #sync(): Promise<void> {
    const extents = this.#there;
    await this.#file.syncData();
    await this.#save(extents);
  }

  async #save(extents: Extent[], filled?: string): Promise<void> {
    const { size, digest } = this.#identity;
    const text = JSON.stringify({ size, digest, extents, filled });
    await replaceFile(join(this.#dir, PART_RECORD), text, { mode: PRIVATE });
  }
}
