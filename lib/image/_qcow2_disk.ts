/**
 * Reads the guest-visible disk of a QCOW2 image, one table entry and one cluster at
 * a time, so that the size of the disk does not matter.
 *
 * Formats: QEMU, docs/interop/qcow2.txt, "Cluster mapping" and "Compressed
 * clusters"; RFC 8878, section 3.1.1, for Zstandard frames.
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
   * Reads `length` bytes, at most 1 MiB, at a byte offset of the disk: zeros for
   * unallocated clusters and beyond the end. Throws `image_invalid` if the image is
   * damaged, or has too many compressed clusters.
   */
  read(offset: number, length: number): Promise<DataView>;
}

const MAX_BYTES_PER_READ = 1024 * 1024;
/** Room for 32 clusters of maximum size; a boot loader is in about a dozen. */
const MAX_DECOMPRESSED_BYTES = 64 * 1024 * 1024;
/** Flag of an L2 entry whose cluster reads as zeros. */
const ZERO_CLUSTER_BIT = 1n;
const SUBCLUSTERS_PER_CLUSTER = 32;
const ZSTD_MAGIC = 0xfd2fb528;
/** Type of a Zstandard block that holds one byte to repeat. */
const RLE_BLOCK_TYPE = 1;

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
  /** Size of the guest-visible disk, in bytes. */
  readonly size: number;
  readonly #clusterSize: number;
  /** Decompressed clusters by their offset in the file. */
  readonly #decompressedClusters = new Map<number, Uint8Array>();

  constructor(
    private readonly file: Deno.FsFile,
    private readonly path: string,
    private readonly header: Qcow2Header,
  ) {
    this.size = header.virtualSize;
    this.#clusterSize = header.clusterSize;
  }

  async read(offset: number, length: number): Promise<DataView> {
    if (!(offset >= 0 && length >= 0 && length <= MAX_BYTES_PER_READ)) {
      throw new RangeError(`Cannot read ${length} bytes at offset ${offset}`);
    }
    const bytes = new Uint8Array(length);
    const end = Math.min(length, Math.max(0, this.size - offset));
    for (let done = 0; done < end;) {
      const at = offset + done;
      const offsetInCluster = at % this.#clusterSize;
      const count = Math.min(end - done, this.#clusterSize - offsetInCluster);
      const target = bytes.subarray(done, done + count);
      const cluster = (at - offsetInCluster) / this.#clusterSize;
      await this.#readCluster(cluster, offsetInCluster, target);
      done += count;
    }
    return new DataView(bytes.buffer);
  }

  async #readCluster(index: number, offset: number, target: Uint8Array) {
    const { extendedL2, version, fileSize } = this.header;
    const [entry, bitmap] = await this.#readL2Entry(index);
    if ((entry & COMPRESSED_CLUSTER_BIT) !== 0n) {
      const cluster = await this.#readCompressedCluster(entry);
      return target.set(cluster.subarray(offset, offset + target.length));
    }
    const fileOffset = Number(entry & CLUSTER_OFFSET_MASK);
    const hasZeroBit = (entry & ZERO_CLUSTER_BIT) !== 0n;
    const isZero = version === 3 && !extendedL2 && hasZeroBit;
    if (fileOffset === 0 || isZero) return;
    if (fileOffset >= fileSize) throw this.#truncatedError();
    const at = fileOffset + offset;
    const data = await readFileAt(this.file, at, target.length);
    target.set(new Uint8Array(data.buffer, 0, data.byteLength));
    if (extendedL2) this.#zeroUnallocatedSubclusters(bitmap, offset, target);
  }

  /** Only subclusters whose bit is set are allocated in the file. */
  #zeroUnallocatedSubclusters(bitmap: bigint, offset: number, to: Uint8Array) {
    const size = this.#clusterSize / SUBCLUSTERS_PER_CLUSTER;
    for (let index = 0; index < SUBCLUSTERS_PER_CLUSTER; index++) {
      if ((bitmap >> BigInt(index) & 1n) !== 0n) continue;
      const start = Math.max(0, index * size - offset);
      const end = Math.max(0, (index + 1) * size - offset);
      to.fill(0, start, end);
    }
  }

  async #readL2Entry(cluster: number): Promise<[bigint, bigint]> {
    const { l1Offset, extendedL2, fileSize } = this.header;
    const entrySize = extendedL2 ? 16 : 8;
    const perTable = this.#clusterSize / entrySize;
    const index = Math.floor(cluster / perTable);
    const l1Entry = await readFileAt(this.file, l1Offset + index * 8, 8);
    if (l1Entry.byteLength < 8) throw this.#truncatedError();
    const table = Number(l1Entry.getBigUint64(0) & CLUSTER_OFFSET_MASK);
    if (table === 0) return [0n, 0n];
    const at = table + (cluster % perTable) * entrySize;
    if (at + entrySize > fileSize) throw this.#truncatedError();
    const entry = await readFileAt(this.file, at, entrySize);
    return [entry.getBigUint64(0), extendedL2 ? entry.getBigUint64(8) : 0n];
  }

  #truncatedError(): ToolsmithError {
    return invalidImageError(this.path, "is truncated");
  }

  async #readCompressedCluster(entry: bigint): Promise<Uint8Array> {
    // The entry's upper bits hold the number of sectors, the lower the offset.
    const shift = BigInt(62 - (Math.log2(this.#clusterSize) - 8));
    const sectors = Number((entry & (COMPRESSED_CLUSTER_BIT - 1n)) >> shift);
    const offset = Number(entry & ((1n << shift) - 1n));
    const cached = this.#decompressedClusters.get(offset);
    if (cached) return cached;
    const count = this.#decompressedClusters.size + 1;
    if (count * this.#clusterSize > MAX_DECOMPRESSED_BYTES) {
      const problem = "has too many compressed clusters to inspect";
      throw invalidImageError(this.path, problem);
    }
    // A damaged entry may state far more sectors than a cluster needs.
    const length = Math.min(
      (sectors + 1) * 512 - offset % 512,
      2 * this.#clusterSize + 512,
    );
    const data = await readFileAt(this.file, offset, length);
    const compressed = new Uint8Array(data.buffer, 0, data.byteLength);
    const bytes = await this.#decompressCluster(compressed);
    if (bytes.length !== this.#clusterSize) {
      throw invalidImageError(this.path, "has a damaged cluster");
    }
    this.#decompressedClusters.set(offset, bytes);
    return bytes;
  }

  async #decompressCluster(compressed: Uint8Array): Promise<Uint8Array> {
    // DecompressionStream fails on the bytes after the compressed data.
    const { inflateRawSync, zstdDecompressSync } = await import("node:zlib");
    const limit = { maxOutputLength: this.#clusterSize };
    try {
      return this.header.compression === "zstd"
        ? zstdDecompressSync(firstZstdFrame(compressed), limit)
        : inflateRawSync(compressed, limit);
    } catch (cause) {
      throw invalidImageError(this.path, "has a damaged cluster", cause);
    }
  }

  [Symbol.dispose]() {
    this.file.close();
  }
}

/**
 * Returns the Zstandard frame that the bytes start with, without what follows: the
 * next cluster would be decompressed too. Returns all bytes if the frame is
 * truncated.
 */
export function firstZstdFrame(bytes: Uint8Array): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 5 || view.getUint32(0, true) !== ZSTD_MAGIC) return bytes;
  const flags = view.getUint8(4);
  const isSingleSegment = flags >> 5 & 1;
  const windowBytes = 1 - isSingleSegment;
  const dictionaryIdBytes = [0, 1, 2, 4][flags & 3];
  const contentSizeBytes = [isSingleSegment, 2, 4, 8][flags >> 6];
  const checksumBytes = flags >> 2 & 1 ? 4 : 0;
  let at = 5 + windowBytes + dictionaryIdBytes + contentSizeBytes;
  while (at + 3 <= bytes.length) {
    const header = view.getUint16(at, true) | view.getUint8(at + 2) << 16;
    const isRle = (header >> 1 & 3) === RLE_BLOCK_TYPE;
    at += 3 + (isRle ? 1 : header >> 3);
    const isLastBlock = (header & 1) !== 0;
    if (isLastBlock) return bytes.subarray(0, at + checksumBytes);
  }
  return bytes;
}

function invalidImageError(
  path: string,
  problem: string,
  cause?: unknown,
): ToolsmithError {
  return new ToolsmithError("image_invalid", `${path} ${problem}`, {
    hint: "check the image: qemu-img check IMAGE",
    cause,
  });
}
