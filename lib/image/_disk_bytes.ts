/**
 * Reads bytes of the disk that a guest would see in a QCOW2 image: one entry of
 * each table and one cluster at a time, whatever the size of the disk.
 *
 * Format: QEMU, docs/interop/qcow2.txt, "Cluster mapping" and "Compressed
 * clusters".
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import {
  COMPRESSED_BIT,
  compressedPlace,
  OFFSET_BITS,
  type Qcow2Header,
  readAt,
  readHeader,
} from "./_header.ts";
import { firstFrame } from "./_zstd_frame.ts";
import { assertSelfContained } from "./qcow2.ts";

/** What reads a disk. */
export interface DiskReader {
  /**
   * Reads a part of it.
   *
   * @param offset Where, in bytes.
   * @param length How many bytes, at most 1 MiB.
   * @returns That many; zeros where nothing was written, or the disk has ended.
   * @throws {ToolsmithError} `image_invalid` where the image is damaged, or has
   * too many compressed clusters.
   */
  read(offset: number, length: number): Promise<DataView>;
}

/** The disk of an image. Disposing it closes the file. */
export interface DiskBytes extends DiskReader, Disposable {
  /** Its size, in bytes. */
  readonly size: number;
}

const MAX_READ = 1024 * 1024;
/** Room for 32 of the largest clusters. What an image boots with is in a dozen. */
const MAX_UNPACKED = 64 * 1024 * 1024;
/** An entry of a second table whose cluster reads as zeros. */
const ZERO_BIT = 1n;
const SUBCLUSTERS = 32;

/**
 * Opens the disk of an image, for a look at a few parts: 64 MiB of compressed
 * clusters are unpacked at most, each once, and kept until it is closed.
 *
 * Needs `--allow-read` for the file.
 *
 * @param path The image.
 * @param shown Its path or address, for messages.
 * @returns The disk.
 * @throws {ToolsmithError} `image_invalid` when it is no QCOW2 image or is
 * encrypted, `image_unsafe` when it refers to another file.
 */
export async function openDisk(
  path: string,
  shown: string = path,
): Promise<DiskBytes> {
  const file = await Deno.open(path);
  try {
    const header = await readHeader(file, shown);
    assertSelfContained(header.info, shown);
    if (header.info.encryption) throw damaged(shown, "is encrypted");
    return new Qcow2Disk(file, shown, header);
  } catch (error) {
    file.close();
    throw error;
  }
}

class Qcow2Disk implements DiskBytes {
  readonly size: number;
  readonly #clusterSize: number;
  /** Decompressed clusters by their place in the file: none is unpacked twice. */
  readonly #unpacked = new Map<number, Uint8Array>();

  constructor(
    private readonly file: Deno.FsFile,
    private readonly path: string,
    private readonly header: Qcow2Header,
  ) {
    this.size = header.info.virtualSize;
    this.#clusterSize = header.info.clusterSize;
  }

  async read(offset: number, length: number): Promise<DataView> {
    if (!(offset >= 0 && length >= 0 && length <= MAX_READ)) {
      throw new RangeError(`no part of a disk: ${offset}, ${length}`);
    }
    const bytes = new Uint8Array(length);
    const end = Math.min(length, Math.max(0, this.size - offset));
    for (let done = 0; done < end;) {
      const at = offset + done;
      const within = at % this.#clusterSize;
      const count = Math.min(end - done, this.#clusterSize - within);
      const part = bytes.subarray(done, done + count);
      await this.#readCluster(at - within, within, part);
      done += count;
    }
    return new DataView(bytes.buffer);
  }

  /** Fills a part of one cluster. */
  async #readCluster(start: number, within: number, into: Uint8Array) {
    const { extended, info: { version, fileSize } } = this.header;
    const [entry, bitmap] = await this.#entryOf(start / this.#clusterSize);
    if ((entry & COMPRESSED_BIT) !== 0n) {
      const cluster = await this.#decompress(entry);
      return into.set(cluster.subarray(within, within + into.length));
    }
    const place = Number(entry & OFFSET_BITS);
    const zero = version === 3 && !extended && (entry & ZERO_BIT) !== 0n;
    if (place === 0 || zero) return;
    if (place >= fileSize) throw damaged(this.path, "is cut off");
    const data = await readAt(this.file, place + within, into.length);
    into.set(new Uint8Array(data.buffer, 0, data.byteLength));
    if (extended) this.#clearSubclusters(bitmap, within, into);
  }

  /** Only subclusters whose bit is set are in the file. */
  #clearSubclusters(bitmap: bigint, within: number, into: Uint8Array) {
    const size = this.#clusterSize / SUBCLUSTERS;
    for (let index = 0; index < SUBCLUSTERS; index++) {
      if ((bitmap >> BigInt(index) & 1n) !== 0n) continue;
      const from = Math.max(0, index * size - within);
      const to = Math.max(0, (index + 1) * size - within);
      into.fill(0, from, to);
    }
  }

  /** The entry of a cluster, and its bitmap of subclusters. */
  async #entryOf(cluster: number): Promise<[bigint, bigint]> {
    const { l1Offset, extended, info: { fileSize } } = this.header;
    const entrySize = extended ? 16 : 8;
    const perTable = this.#clusterSize / entrySize;
    const index = Math.floor(cluster / perTable);
    const first = await readAt(this.file, l1Offset + index * 8, 8);
    if (first.byteLength < 8) throw damaged(this.path, "is cut off");
    const table = Number(first.getBigUint64(0) & OFFSET_BITS);
    if (table === 0) return [0n, 0n];
    const at = table + (cluster % perTable) * entrySize;
    if (at + entrySize > fileSize) throw damaged(this.path, "is cut off");
    const entry = await readAt(this.file, at, entrySize);
    return [entry.getBigUint64(0), extended ? entry.getBigUint64(8) : 0n];
  }

  async #decompress(entry: bigint): Promise<Uint8Array> {
    const place = compressedPlace(entry, this.#clusterSize);
    const known = this.#unpacked.get(place.offset);
    if (known) return known;
    if ((this.#unpacked.size + 1) * this.#clusterSize > MAX_UNPACKED) {
      throw damaged(this.path, "has too many compressed clusters to look at");
    }
    // A sector count of damaged entries may be far above what a cluster needs.
    const length = Math.min(place.bytes, 2 * this.#clusterSize + 512);
    const data = await readAt(this.file, place.offset, length);
    const packed = new Uint8Array(data.buffer, 0, data.byteLength);
    const bytes = await this.#unpack(packed);
    if (bytes.length !== this.#clusterSize) {
      throw damaged(this.path, "has a damaged cluster");
    }
    this.#unpacked.set(place.offset, bytes);
    return bytes;
  }

  async #unpack(packed: Uint8Array): Promise<Uint8Array> {
    // Deno's own DecompressionStream fails at what follows the packed bytes.
    const { inflateRawSync, zstdDecompressSync } = await import("node:zlib");
    const limit = { maxOutputLength: this.#clusterSize };
    try {
      return this.header.info.compression === "zstd"
        ? zstdDecompressSync(firstFrame(packed), limit)
        : inflateRawSync(packed, limit);
    } catch (cause) {
      throw damaged(this.path, "has a damaged cluster", cause);
    }
  }

  [Symbol.dispose]() {
    this.file.close();
  }
}

function damaged(path: string, what: string, cause?: unknown): ToolsmithError {
  return new ToolsmithError("image_invalid", `${path} ${what}`, {
    hint: "check it: qemu-img check IMAGE",
    cause,
  });
}
