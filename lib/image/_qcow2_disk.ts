/**
 * Reads the guest-visible disk of a QCOW2 image, one table entry and one cluster at
 * a time, so that the size of the disk does not matter.
 *
 * Format: QEMU, docs/interop/qcow2.txt, "Cluster mapping" and "Compressed clusters".
 */
import { ToolsmithError } from "../errors.ts";
import { readFileAt } from "../system/files.ts";
import {
  assertBootableImage,
  CLUSTER_OFFSET_MASK,
  COMPRESSED_CLUSTER_BIT,
  type Qcow2Header,
  readQcow2HeaderFrom,
} from "./qcow2_header.ts";

export interface DiskReader {
  /**
   * Reads `length` bytes at a byte offset of the disk: zeros for unallocated clusters
   * and beyond the end. Throws `image_invalid` if the image is damaged, or has too many
   * compressed clusters.
   */
  read(offset: number, length: number): Promise<DataView>;
}

/** Room for 32 clusters of maximum size; a boot loader is in about a dozen. */
const MAX_DECOMPRESSED_BYTES = 64 * 1024 * 1024;
/** Flag of an L2 entry whose cluster reads as zeros. */
const ZERO_CLUSTER_BIT = 1n;
const SUBCLUSTERS_PER_CLUSTER = 32;

/**
 * Opens an image to read a few parts of its disk: at most 64 MiB of compressed clusters
 * are decompressed, each once, and cached until the disk is closed. Rejects an image
 * that is encrypted or refers to another file. `shown` is the image's name in error
 * messages: a path or URL. Disposing closes the file.
 */
export async function openQcow2Disk(
  path: string,
  shown: string = path,
): Promise<Qcow2Disk> {
  using opened = new DisposableStack();
  const file = opened.use(await Deno.open(path));
  const header = await readQcow2HeaderFrom(file, shown);
  assertBootableImage(header, shown);
  opened.move();
  return new Qcow2Disk(file, shown, header);
}

class Qcow2Disk implements DiskReader, Disposable {
  /** Decompressed clusters by their offset in the file. */
  readonly #decompressedClusters = new Map<number, Uint8Array>();
  /** What an entry or a bit of its bitmap allocates: a cluster or subcluster. */
  readonly #unitSize: number;

  constructor(
    private readonly file: Deno.FsFile,
    private readonly path: string,
    private readonly header: Qcow2Header,
  ) {
    const { clusterSize, extendedL2 } = header;
    this.#unitSize = clusterSize / (extendedL2 ? SUBCLUSTERS_PER_CLUSTER : 1);
  }

  async read(offset: number, length: number): Promise<DataView> {
    const bytes = new Uint8Array(length);
    const end = Math.min(length, this.header.virtualSize - offset);
    for (let done = 0; done < end;) {
      const at = offset + done;
      const count = Math.min(end - done, this.#unitSize - at % this.#unitSize);
      await this.#readInUnit(at, bytes.subarray(done, done + count));
      done += count;
    }
    return new DataView(bytes.buffer);
  }

  async #readInUnit(at: number, target: Uint8Array): Promise<void> {
    const { clusterSize, extendedL2, fileSize } = this.header;
    const offset = at % clusterSize;
    const [entry, bitmap] = await this.#readL2Entry(
      (at - offset) / clusterSize,
    );
    if ((entry & COMPRESSED_CLUSTER_BIT) !== 0n) {
      const cluster = await this.#readCompressedCluster(entry);
      return target.set(cluster.subarray(offset, offset + target.length));
    }
    const subcluster = BigInt(Math.floor(offset / this.#unitSize));
    const isZero = extendedL2
      ? (bitmap >> subcluster & 1n) === 0n
      : (entry & ZERO_CLUSTER_BIT) !== 0n;
    const start = Number(entry & CLUSTER_OFFSET_MASK);
    if (start === 0 || isZero) return;
    if (start >= fileSize) throw this.#error("is truncated");
    const data = await readFileAt(this.file, start + offset, target.length);
    target.set(new Uint8Array(data.buffer, 0, data.byteLength));
  }

  /** Returns a cluster's entry, and with subclusters the bitmap behind it. */
  async #readL2Entry(cluster: number): Promise<[bigint, bigint]> {
    const { clusterSize, l1Offset, extendedL2 } = this.header;
    const entrySize = extendedL2 ? 16 : 8;
    const perTable = clusterSize / entrySize;
    const index = Math.floor(cluster / perTable);
    const l1 = await this.#readTable(l1Offset + index * 8, 8);
    const table = Number(l1.getBigUint64(0) & CLUSTER_OFFSET_MASK);
    if (table === 0) return [0n, 0n];
    const at = table + (cluster % perTable) * entrySize;
    const l2 = await this.#readTable(at, entrySize);
    return [l2.getBigUint64(0), extendedL2 ? l2.getBigUint64(8) : 0n];
  }

  async #readTable(offset: number, length: number): Promise<DataView> {
    const view = await readFileAt(this.file, offset, length);
    if (view.byteLength < length) throw this.#error("is truncated");
    return view;
  }

  async #readCompressedCluster(entry: bigint): Promise<Uint8Array> {
    const { clusterSize } = this.header;
    // The entry's upper bits hold the number of sectors, the lower the offset.
    const shift = BigInt(62 - (Math.log2(clusterSize) - 8));
    const sectors = Number((entry & (COMPRESSED_CLUSTER_BIT - 1n)) >> shift);
    const offset = Number(entry & ((1n << shift) - 1n));
    const cached = this.#decompressedClusters.get(offset);
    if (cached) return cached;
    const count = this.#decompressedClusters.size + 1;
    if (count * clusterSize > MAX_DECOMPRESSED_BYTES) {
      throw this.#error("has too many compressed clusters to inspect");
    }
    const length = (sectors + 1) * 512 - offset % 512;
    const data = await readFileAt(this.file, offset, length);
    const compressed = new Uint8Array(data.buffer, 0, data.byteLength);
    const bytes = await this.#decompressCluster(compressed);
    this.#decompressedClusters.set(offset, bytes);
    return bytes;
  }

  async #decompressCluster(compressed: Uint8Array): Promise<Uint8Array> {
    const { clusterSize, compression } = this.header;
    // DecompressionStream fails on the bytes after the compressed data.
    const zlib = await import("node:zlib");
    const decompress = compression === "zstd"
      ? zlib.zstdDecompressSync
      : zlib.inflateRawSync;
    try {
      const bytes = decompress(compressed, {
        maxOutputLength: clusterSize,
        // After a full chunk, zstd would decompress the next cluster too.
        chunkSize: clusterSize + 1,
      });
      if (bytes.length === clusterSize) return bytes;
      throw new RangeError(`The cluster has ${bytes.length} bytes`);
    } catch (cause) {
      throw this.#error("has a damaged cluster", cause);
    }
  }

  #error(problem: string, cause?: unknown): ToolsmithError {
    const message = `${this.path} ${problem}`;
    const hint = "check the image: qemu-img check IMAGE";
    return new ToolsmithError("image_invalid", message, { hint, cause });
  }

  [Symbol.dispose]() {
    this.file.close();
  }
}
