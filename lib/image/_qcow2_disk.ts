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
): Promise<DiskReader & Disposable> {
  using opened = new DisposableStack();
  const file = opened.use(await Deno.open(path));
  const header = await readQcow2HeaderFrom(file, shown);
  assertBootableImage(header, shown);
  const { clusterSize, extendedL2, l1Offset, fileSize } = header;
  /** What an entry or a bit of its bitmap allocates: a cluster or subcluster. */
  const unitSize = clusterSize / (extendedL2 ? SUBCLUSTERS_PER_CLUSTER : 1);
  /** Decompressed clusters by their offset in the file. */
  const decompressed = new Map<number, Uint8Array>();

  async function read(offset: number, length: number): Promise<DataView> {
    const bytes = new Uint8Array(length);
    const end = Math.min(length, header.virtualSize - offset);
    for (let done = 0; done < end;) {
      const at = offset + done;
      const count = Math.min(end - done, unitSize - at % unitSize);
      await readInUnit(at, bytes.subarray(done, done + count));
      done += count;
    }
    return new DataView(bytes.buffer);
  }

  async function readInUnit(at: number, target: Uint8Array): Promise<void> {
    const offset = at % clusterSize;
    const [entry, bitmap] = await readL2Entry((at - offset) / clusterSize);
    if ((entry & COMPRESSED_CLUSTER_BIT) !== 0n) {
      const cluster = await readCompressedCluster(entry);
      return target.set(cluster.subarray(offset, offset + target.length));
    }
    const subcluster = BigInt(Math.floor(offset / unitSize));
    const isZero = extendedL2
      ? (bitmap >> subcluster & 1n) === 0n
      : (entry & ZERO_CLUSTER_BIT) !== 0n;
    const start = Number(entry & CLUSTER_OFFSET_MASK);
    if (start === 0 || isZero) return;
    if (start >= fileSize) throw invalidImage("is truncated");
    const data = await readFileAt(file, start + offset, target.length);
    target.set(new Uint8Array(data.buffer, 0, data.byteLength));
  }

  /** Returns a cluster's entry, and with subclusters the bitmap behind it. */
  async function readL2Entry(cluster: number): Promise<[bigint, bigint]> {
    const entrySize = extendedL2 ? 16 : 8;
    const perTable = clusterSize / entrySize;
    const l1 = await readTable(
      l1Offset + Math.floor(cluster / perTable) * 8,
      8,
    );
    const table = Number(l1.getBigUint64(0) & CLUSTER_OFFSET_MASK);
    if (table === 0) return [0n, 0n];
    const at = table + (cluster % perTable) * entrySize;
    const l2 = await readTable(at, entrySize);
    return [l2.getBigUint64(0), extendedL2 ? l2.getBigUint64(8) : 0n];
  }

  async function readTable(offset: number, length: number): Promise<DataView> {
    const view = await readFileAt(file, offset, length);
    if (view.byteLength < length) throw invalidImage("is truncated");
    return view;
  }

  async function readCompressedCluster(entry: bigint): Promise<Uint8Array> {
    // The entry's upper bits hold the number of sectors, the lower the offset.
    const shift = BigInt(62 - (Math.log2(clusterSize) - 8));
    const sectors = Number((entry & (COMPRESSED_CLUSTER_BIT - 1n)) >> shift);
    const offset = Number(entry & ((1n << shift) - 1n));
    const cached = decompressed.get(offset);
    if (cached) return cached;
    if ((decompressed.size + 1) * clusterSize > MAX_DECOMPRESSED_BYTES) {
      throw invalidImage("has too many compressed clusters to inspect");
    }
    const length = (sectors + 1) * 512 - offset % 512;
    const data = await readFileAt(file, offset, length);
    const compressed = new Uint8Array(data.buffer, 0, data.byteLength);
    const bytes = await decompressCluster(compressed, header).catch((cause) => {
      throw invalidImage("has a damaged cluster", cause);
    });
    decompressed.set(offset, bytes);
    return bytes;
  }

  function invalidImage(problem: string, cause?: unknown): ToolsmithError {
    const hint = "check the image: qemu-img check IMAGE";
    const message = `${shown} ${problem}`;
    return new ToolsmithError("image_invalid", message, { hint, cause });
  }

  const owned = opened.move();
  return { read, [Symbol.dispose]: () => owned.dispose() };
}

async function decompressCluster(
  compressed: Uint8Array,
  { clusterSize, compression }: Qcow2Header,
): Promise<Uint8Array> {
  // DecompressionStream fails on the bytes after the compressed data.
  const { inflateRawSync, zstdDecompressSync } = await import("node:zlib");
  const decompress = compression === "zstd"
    ? zstdDecompressSync
    : inflateRawSync;
  const bytes = decompress(compressed, {
    maxOutputLength: clusterSize,
    // After a full chunk, zstd would decompress the next cluster too.
    chunkSize: clusterSize + 1,
  });
  if (bytes.length === clusterSize) return bytes;
  throw new RangeError(`The cluster has ${bytes.length} bytes`);
}
