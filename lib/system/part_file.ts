/**
 * A partial download that can be written in any order and resumed by another
 * process. Records beside the part file list the present bytes.
 */
import { join, relative } from "../path.ts";
import type { DigestEngineName } from "./digest.ts";
import {
  addExtent,
  countExtentBytes,
  type Extent,
  findGaps,
} from "./extents.ts";
import {
  type FileIdentity,
  orIfNotFound,
  removeTree,
  replaceFileAtomically,
  toFileIdentity,
} from "./files.ts";
import {
  DURABLE_EXTENTS_FILE,
  type ExpectedContent,
  hostBootTimeMs,
  PART_FILE_NAME,
  readPartRecord,
  WRITTEN_EXTENTS_FILE,
} from "./part_record.ts";
import { createIncrementalSync } from "./incremental_sync.ts";
import { writeAllSync } from "./write_all.ts";
import { abortable } from "./time.ts";

const PRIVATE_FILE_MODE = 0o600;
/** Bytes to write for each further extent before the journal is rewritten. */
const JOURNAL_BYTES_PER_EXTENT = 1024;
/** With no more extents, each write rewrites the journal. */
const FEW_EXTENTS = 32;

/**
 * Creates a part file or resumes an existing one in a directory whose lock the caller
 * holds; discards a part file of other content. Written bytes are synced in the
 * background, so that little is lost in a crash and little is left to sync at the end.
 * Disposing keeps the bytes for the next run. The engine is the one to hash the file
 * with.
 */
export async function openPartFile(
  dir: string,
  expected: ExpectedContent,
  { engine }: { engine?: DigestEngineName } = {},
): Promise<PartFile> {
  const record = await readPartRecord(dir);
  const names = [PART_FILE_NAME, DURABLE_EXTENTS_FILE, WRITTEN_EXTENTS_FILE];
  for (const name of names) {
    const path = join(dir, name);
    const stat = await orIfNotFound(Deno.lstat(path));
    // Removes a link, so that its target is neither read nor written.
    if (stat && !stat.isFile) await removeTree(path);
  }
  const file = await Deno.open(join(dir, PART_FILE_NAME), {
    read: true,
    write: true,
    create: true,
    mode: PRIVATE_FILE_MODE,
  });
  const isSameContent = record?.digest === expected.digest &&
    record.size === expected.size;
  const present = isSameContent && !record.filled ? record.extents : [];
  const part = new PartFile(dir, expected, file, present, engine);
  if (!isSameContent) await part.clear();
  else if (record.filled) {
    await part.copyFromExternalFile(join(dir, record.filled));
  }
  return part;
}

export class PartFile implements AsyncDisposable {
  readonly path: string;
  readonly size: number;
  #sync = this.#createSync();
  #writtenBytes = 0;
  #isComplete = false;
  /** Journal of written bytes; `undefined` if the boot time is unknown. */
  #journalFile: Deno.FsFile | undefined;
  #bytesSinceJournal = 0;
  #nextWrite = Promise.withResolvers<void>();

  constructor(
    private readonly dir: string,
    readonly expected: ExpectedContent,
    private readonly file: Deno.FsFile,
    /** Present byte ranges, synced or not. */
    private presentExtents: Extent[],
    readonly engine: DigestEngineName | undefined,
  ) {
    this.path = join(dir, PART_FILE_NAME);
    this.size = expected.size;
  }

  get presentBytes(): number {
    return countExtentBytes(this.presentExtents);
  }

  missingExtents(within: Extent = [0, this.size]): Extent[] {
    return findGaps(this.presentExtents, within);
  }

  /**
   * Opens a writer with a file handle of its own. It writes synchronously: a handover
   * to another thread would cost more than the copy.
   */
  async openWriter() {
    const file = await Deno.open(this.path, { write: true });
    let at = 0;
    return {
      write: (position: number, bytes: Uint8Array) => {
        if (position !== at) file.seekSync(position, Deno.SeekMode.Start);
        writeAllSync(file, bytes);
        at = position + bytes.length;
        this.#onBytesWritten([position, at]);
      },
      [Symbol.dispose]: () => file.close(),
    };
  }

  /** Yields the growing length of the contiguous prefix, up to the full size. */
  async *watchPrefixLength(signal: AbortSignal): AsyncGenerator<number> {
    for (let counted = 0; counted < this.size;) {
      signal.throwIfAborted();
      const [first] = this.presentExtents;
      const count = first?.[0] === 0 ? first[1] : 0;
      if (count > counted) yield counted = count;
      else await abortable(this.#nextWrite.promise, signal);
    }
  }

  /**
   * Records that an external program (oras) writes another file of the directory
   * from its start. The next {@linkcode openPartFile} copies its bytes.
   */
  recordExternalFile(path: string): Promise<void> {
    return this.#writeRecord(this.presentExtents, relative(this.dir, path));
  }

  /** Replaces the content by the bytes of another file, as the prefix. */
  async copyFromExternalFile(from: string): Promise<void> {
    const stat = await orIfNotFound(Deno.lstat(from));
    if (!stat?.isFile || stat.size > this.size) return;
    // Copied, not renamed: the program may still be writing.
    await Deno.copyFile(from, this.path);
    await this.file.truncate(this.size);
    this.presentExtents = addExtent([], [0, stat.size]);
    await this.#syncAndRecord();
  }

  async clear(): Promise<void> {
    await this.#sync.settled().catch(() => {});
    // A failed sync concerns only the discarded bytes.
    this.#sync = this.#createSync();
    this.#writtenBytes = 0;
    this.presentExtents = [];
    await this.#removeRecords();
    await this.file.truncate(0);
    await this.file.truncate(this.size);
  }

  /** Removes the records of a complete file, and returns the file's identity. */
  async markComplete(): Promise<FileIdentity> {
    await this.#sync.settled();
    this.#isComplete = true;
    await this.#removeRecords();
    return toFileIdentity(await this.file.stat());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#sync.settled();
      if (!this.#isComplete && this.presentBytes > 0) {
        await this.#syncAndRecord();
        // Everything is durable now.
        await this.#removeJournal();
      }
    } catch {
      // The transfer reports its own error; the older record remains valid.
    } finally {
      this.#journalFile?.close();
      this.file.close();
    }
  }

  #onBytesWritten([from, to]: Extent): void {
    this.presentExtents = addExtent(this.presentExtents, [from, to]);
    this.#nextWrite.resolve();
    this.#nextWrite = Promise.withResolvers();
    this.#bytesSinceJournal += to - from;
    // The journal holds all extents: with many, rewrite it less often.
    const further = this.presentExtents.length - FEW_EXTENTS;
    if (this.#bytesSinceJournal >= further * JOURNAL_BYTES_PER_EXTENT) {
      this.#bytesSinceJournal = 0;
      this.#writeJournal();
    }
    this.#writtenBytes += to - from;
    this.#sync.reportWritten(this.#writtenBytes);
  }

  /** Records written bytes: they survive a killed process without a sync. */
  #writeJournal(): void {
    const booted = hostBootTimeMs();
    if (booted === undefined) return;
    const file = this.#journalFile ??= Deno.openSync(
      join(this.dir, WRITTEN_EXTENTS_FILE),
      { write: true, create: true, mode: PRIVATE_FILE_MODE },
    );
    const entry = { ...this.expected, extents: this.presentExtents, booted };
    // One write in place, padded to cover a longer old entry.
    const text = JSON.stringify(entry).padEnd(file.statSync().size);
    file.seekSync(0, Deno.SeekMode.Start);
    writeAllSync(file, new TextEncoder().encode(text));
  }

  async #removeJournal(): Promise<void> {
    this.#journalFile?.close();
    this.#journalFile = undefined;
    await removeTree(join(this.dir, WRITTEN_EXTENTS_FILE));
  }

  async #removeRecords(): Promise<void> {
    await removeTree(join(this.dir, DURABLE_EXTENTS_FILE));
    await this.#removeJournal();
  }

  #createSync() {
    return createIncrementalSync(() => this.#syncAndRecord());
  }

  /** Syncs, and records the bytes that were present before. */
  async #syncAndRecord(): Promise<void> {
    const extents = this.presentExtents;
    await this.file.syncData();
    await this.#writeRecord(extents);
  }

  async #writeRecord(extents: Extent[], filled?: string): Promise<void> {
    const { size, digest } = this.expected;
    const text = JSON.stringify({ size, digest, extents, filled });
    const path = join(this.dir, DURABLE_EXTENTS_FILE);
    await replaceFileAtomically(path, text, { mode: PRIVATE_FILE_MODE });
  }
}
