/**
 * The header of a QCOW2 image and the entries of its tables, each checked.
 *
 * Format: QEMU, docs/interop/qcow2.txt.
 *
 * @module
 */
import { systemError, ToolsmithError } from "../errors.ts";
import { notQcow2 } from "./other_formats.ts";

/** What the header of a QCOW2 image says. */
export interface Qcow2Info {
  /** Version of the format. */
  version: 2 | 3;
  /** Size of the disk that the guest sees, in bytes. */
  virtualSize: number;
  /** Size of a cluster, in bytes. */
  clusterSize: number;
  /** Size of the file itself, in bytes. */
  fileSize: number;
  /** How clusters are compressed where they are. */
  compression: "zlib" | "zstd";
  /** How clusters are encrypted, or `undefined` if they are not. */
  encryption?: "aes" | "luks";
  /** The file that unwritten parts are read from, if there is one. */
  backingFile?: string;
  /** The file that holds the data, `""` if it has no name, if there is one. */
  dataFile?: string;
  /** How many internal snapshots the image holds. */
  snapshots: number;
  /** The incompatible features that are set, as the format's bit mask. */
  incompatibleFeatures: bigint;
}

/** A header, and where the tables of clusters begin. */
export interface Qcow2Header {
  /** What the header says. */
  info: Qcow2Info;
  /** Where the first table lies, in bytes. */
  l1Offset: number;
  /** How many entries it has. */
  l1Entries: number;
  /** Have entries of the second tables 16 bytes, not 8? */
  extended: boolean;
}

const MAGIC = 0x514649fb;
const KNOWN_FEATURES = 0b11111n;
const DATA_FILE_BIT = 4n;
const COMPRESSION_BIT = 8n;
const EXTENDED_L2_BIT = 16n;
const EXTENSION_DATA_FILE = 0x44415441;
const MAX_HEADER = 64 * 1024;
const MAX_L1_BYTES = 32 * 1024 * 1024;

/** An entry of a second table that names a compressed cluster. */
export const COMPRESSED_BIT = 1n << 62n;
/** Where the bits of an entry are that say where its cluster lies. */
export const OFFSET_BITS = 0x00fffffffffffe00n;

/**
 * Reads the header of an image.
 *
 * @param file The image, open.
 * @param path Its path or address, for messages.
 * @returns The header, checked against the size of the file.
 * @throws {ToolsmithError} `image_invalid`.
 */
export async function readHeader(
  file: Deno.FsFile,
  path: string,
): Promise<Qcow2Header> {
  const fileSize = (await file.stat()).size;
  const view = await readAt(file, 0, MAX_HEADER).catch((cause) => {
    throw systemError(cause, { what: `Cannot read ${path}` });
  });
  if (view.byteLength < 4 || view.getUint32(0) !== MAGIC) {
    const { buffer, byteLength } = view;
    throw notQcow2(new Uint8Array(buffer, 0, byteLength), path);
  }
  if (view.byteLength < 72) throw invalid(path, "is cut off in its header");
  const version = view.getUint32(4);
  if (version !== 2 && version !== 3) {
    throw invalid(path, `is QCOW2 of the unknown version ${version}`);
  }
  if (version === 3 && view.byteLength < 104) {
    throw invalid(path, "is cut off in its header");
  }
  const clusterBits = view.getUint32(20);
  if (clusterBits < 9 || clusterBits > 21) {
    throw invalid(path, `has clusters of the impossible size 2^${clusterBits}`);
  }
  const features = version === 3 ? view.getBigUint64(72) : 0n;
  if ((features & ~KNOWN_FEATURES) !== 0n) {
    throw invalid(
      path,
      `has unknown incompatible features: 0x${features.toString(16)}`,
    );
  }
  const headerLength = version === 3 ? view.getUint32(100) : 72;
  const virtualSize = Number(view.getBigUint64(24));
  const l1Entries = view.getUint32(36);
  const l1Offset = Number(view.getBigUint64(40));
  const covered = l1Entries * (2 ** clusterBits / 8) * 2 ** clusterBits;
  const extended = (features & EXTENDED_L2_BIT) !== 0n;
  if (covered / (extended ? 2 : 1) < virtualSize) {
    throw invalid(path, "has a table of clusters too small for its disk");
  }
  if (l1Entries * 8 > MAX_L1_BYTES || l1Offset + l1Entries * 8 > fileSize) {
    throw invalid(path, "is cut off: its table of clusters is not there");
  }
  const info: Qcow2Info = {
    version,
    virtualSize,
    clusterSize: 2 ** clusterBits,
    fileSize,
    compression: (features & COMPRESSION_BIT) !== 0n &&
        headerLength > 104 && view.byteLength > 104 && view.getUint8(104) === 1
      ? "zstd"
      : "zlib",
    snapshots: view.getUint32(60),
    incompatibleFeatures: features,
  };
  const method = view.getUint32(32);
  if (method !== 0) info.encryption = method === 1 ? "aes" : "luks";
  const backing = view.getBigUint64(8);
  if (backing !== 0n) {
    info.backingFile = text(view, Number(backing), view.getUint32(16));
  }
  const dataFile = externalDataFile(view, headerLength);
  if ((features & DATA_FILE_BIT) !== 0n || dataFile !== undefined) {
    info.dataFile = dataFile ?? "";
  }
  return { info, l1Offset, l1Entries, extended };
}

/**
 * Where a compressed cluster lies.
 *
 * @param entry The entry of a second table that names it.
 * @param clusterSize Size of a cluster, in bytes.
 * @returns Its first byte in the file, how many bytes there are to read, and the
 * room that it takes: whole sectors of 512 bytes.
 */
export function compressedPlace(
  entry: bigint,
  clusterSize: number,
): { offset: number; bytes: number; room: number } {
  // The count of sectors stands above the offset, in the bits left.
  const shift = BigInt(62 - (Math.log2(clusterSize) - 8));
  const sectors = Number((entry & (COMPRESSED_BIT - 1n)) >> shift);
  const offset = Number(entry & ((1n << shift) - 1n));
  const room = (sectors + 1) * 512;
  return { offset, bytes: room - offset % 512, room };
}

/** Walks the header's extensions, each a type, a length and padded data. */
function externalDataFile(view: DataView, from: number): string | undefined {
  for (let at = from; at + 8 <= view.byteLength;) {
    const type = view.getUint32(at);
    const length = view.getUint32(at + 4);
    if (type === 0) return undefined;
    if (type === EXTENSION_DATA_FILE) return text(view, at + 8, length);
    at += 8 + Math.ceil(length / 8) * 8;
  }
  return undefined;
}

/** A name in the header, made safe to print. */
function text(view: DataView, offset: number, length: number): string {
  const end = Math.min(offset + Math.min(length, 1023), view.byteLength);
  const bytes = new Uint8Array(view.buffer, 0, end).subarray(offset);
  // deno-lint-ignore no-control-regex
  return new TextDecoder().decode(bytes).replace(/[\x00-\x1f\x7f]/g, "?");
}

/**
 * Reads a part of a file.
 *
 * @param file The file, open.
 * @param offset Where, in bytes.
 * @param length How many bytes.
 * @returns What is there; shorter where the file ends.
 */
export async function readAt(
  file: Deno.FsFile,
  offset: number,
  length: number,
): Promise<DataView> {
  // No filesystem has files so long as an entry can say: a seek would fail.
  if (offset >= (await file.stat()).size) {
    return new DataView(new ArrayBuffer());
  }
  await file.seek(offset, Deno.SeekMode.Start);
  const bytes = new Uint8Array(length);
  let have = 0;
  while (have < length) {
    const count = await file.read(bytes.subarray(have));
    if (count === null) break;
    have += count;
  }
  return new DataView(bytes.buffer, 0, have);
}

function invalid(path: string, what: string, options?: { hint: string }) {
  return new ToolsmithError("image_invalid", `${path} ${what}`, options);
}
