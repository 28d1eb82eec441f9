/**
 * Splits a file into chunks that another version of it has, too: one for each
 * compressed QCOW2 cluster, content-defined ones elsewhere.
 *
 * Algorithm: FastCDC (USENIX ATC 2016) with a 32-bit gear hash. All constants are
 * part of the index format.
 */

const MIN_CHUNK_BYTES = 4 * 1024;
const NORMAL_CHUNK_BYTES = 16 * 1024;
const MAX_CHUNK_BYTES = 64 * 1024;
/** A chunk ends where these bits are 0; more of them before the normal size. */
const STRICT_MASK = -1 << 16;
const LOOSE_MASK = -1 << 20;
/** A pseudo-random number for each value of a byte: MurmurHash3's finalizer. */
const GEAR = Int32Array.from({ length: 256 }, (_, byte) => {
  let mixed = Math.imul(byte + 1, 0x9e3779b1);
  mixed = Math.imul(mixed ^ mixed >>> 16, 0x85ebca6b);
  mixed = Math.imul(mixed ^ mixed >>> 13, 0xc2b2ae35);
  return mixed ^ mixed >>> 16;
});

/** Size of a record: the length less one (16 bits), 8 bytes of the SHA-256. */
export const RECORD_BYTES = 10;
/** More at once take time that grows with the square of their number. */
const MAX_PARALLEL_DIGESTS = 512;
/** Highest number of bytes to push at once. */
export const MAX_PUSH_BYTES = 1024 * 1024;

/**
 * Creates the chunker of one file.
 *
 * @param clusters Offsets of the compressed clusters, in order.
 * @returns Takes the next bytes of the file, at most 1 MiB, or `undefined` at its end;
 * resolves to the records of the chunks that are complete.
 */
export function createChunker(clusters: Float64Array) {
  const buffer = new Uint8Array(MAX_PUSH_BYTES + MAX_CHUNK_BYTES);
  /** Offset of the buffer in the file, and how many of its bytes are used. */
  let [base, filled] = [0, 0];
  let nextCluster = 0;
  return async (bytes: Uint8Array | undefined) => {
    buffer.set(bytes ?? [], filled);
    filled += bytes?.length ?? 0;
    const chunks: Uint8Array<ArrayBuffer>[] = [];
    let at = 0;
    while (at < filled) {
      while (clusters[nextCluster] <= base + at) nextCluster++;
      const boundary = (clusters[nextCluster] ?? Infinity) - base;
      const end = Math.min(boundary, filled);
      const isEndKnown = !bytes || boundary <= filled;
      // The chunks must not depend on how many bytes are pushed.
      if (!isEndKnown && end - at < MAX_CHUNK_BYTES) break;
      const isCluster = clusters[nextCluster - 1] === base + at;
      const isWhole = isCluster && isEndKnown && end - at <= MAX_CHUNK_BYTES;
      const cut = isWhole ? end : findCut(buffer, at, end);
      chunks.push(buffer.subarray(at, cut));
      at = cut;
    }
    const records = new Uint8Array(chunks.length * RECORD_BYTES);
    const view = new DataView(records.buffer);
    const addRecord = async (chunk: Uint8Array<ArrayBuffer>, nth: number) => {
      view.setUint16(nth * RECORD_BYTES, chunk.length - 1);
      const digest = await crypto.subtle.digest("SHA-256", chunk);
      const hash = new Uint8Array(digest, 0, RECORD_BYTES - 2);
      records.set(hash, nth * RECORD_BYTES + 2);
    };
    for (let from = 0; from < chunks.length; from += MAX_PARALLEL_DIGESTS) {
      const some = chunks.slice(from, from + MAX_PARALLEL_DIGESTS);
      await Promise.all(some.map((chunk, nth) => addRecord(chunk, from + nth)));
    }
    buffer.copyWithin(0, at, filled);
    [base, filled] = [base + at, filled - at];
    return records;
  };
}

/** Yields the chunks of records; the first one starts at `at`. */
export function* readChunks(
  { buffer, byteOffset, byteLength }: Uint8Array,
  at = 0,
) {
  const view = new DataView(buffer, byteOffset, byteLength);
  for (let record = 0; record < byteLength; record += RECORD_BYTES) {
    const length = view.getUint16(record) + 1;
    // 53 of its 64 bits, as a `bigint` would take three times as long to compare.
    const hash = view.getUint32(record + 2) * 2 ** 21 +
      (view.getUint32(record + 6) >>> 11);
    yield { at, length, hash };
    at += length;
  }
}

/** Returns the end of the chunk that starts at `from`. */
function findCut(bytes: Uint8Array, from: number, limit: number): number {
  const end = Math.min(from + MAX_CHUNK_BYTES, limit);
  const normal = Math.min(from + NORMAL_CHUNK_BYTES, end);
  let [at, hash] = [from + MIN_CHUNK_BYTES, 0];
  for (; at < normal; at++) {
    hash = (hash << 1) + GEAR[bytes[at]] | 0;
    if ((hash & STRICT_MASK) === 0) return at + 1;
  }
  for (; at < end; at++) {
    hash = (hash << 1) + GEAR[bytes[at]] | 0;
    if ((hash & LOOSE_MASK) === 0) return at + 1;
  }
  return end;
}
