/**
 * Reads the header of a QCOW2 image, and finds out whether the image depends on
 * other files: such an image would not work elsewhere, and QEMU would open
 * whatever file of the host it names.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";

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

/** How the data of an image is stored, by {@linkcode sampleClusters}. */
export interface Qcow2Clusters {
  /** The part of the image's tables that was looked at, from 0 to 1. */
  seen: number;
  /** Where clusters that are not compressed lie in the file, in bytes. */
  plain: number[];
  /** How many clusters are compressed. */
  compressed: number;
  /** How much room these take, in bytes, rounded up. */
  compressedBytes: number;
  /** How much room the tables take that lead to all clusters, in bytes. */
  tableBytes: number;
}

const MAGIC = 0x514649fb;
const KNOWN_FEATURES = 0b11111n;
const DATA_FILE_BIT = 4n;
const COMPRESSION_BIT = 8n;
const EXTENDED_L2_BIT = 16n;
const COMPRESSED_BIT = 1n << 62n;
const OFFSET_BITS = 0x00fffffffffffe00n;
const EXTENSION_DATA_FILE = 0x44415441;
const MAX_HEADER = 64 * 1024;
const MAX_L1_BYTES = 32 * 1024 * 1024;

/**
 * Reads what the header of a QCOW2 image says.
 *
 * Needs `--allow-read` for the file.
 *
 * @param path The image.
 * @returns The header, checked against the size of the file.
 * @throws {ToolsmithError} `image_invalid` when it is no QCOW2 image, or is cut
 * off, or of a kind that Toolsmith does not know.
 * @throws {Deno.errors.NotFound} When the file is not there.
 *
 * @example The size of the disk that the guest sees
 * ```ts ignore
 * import { inspectQcow2 } from "./qcow2.ts";
 *
 * console.log((await inspectQcow2("image.qcow2")).virtualSize);
 * ```
 */
export async function inspectQcow2(path: string): Promise<Qcow2Info> {
  using file = await Deno.open(path);
  return (await readHeader(file, path)).info;
}

/**
 * Refuses an image that refers to other files.
 *
 * @param info What {@linkcode inspectQcow2} returned.
 * @param path The image, for the message.
 * @throws {ToolsmithError} `image_unsafe` for a backing or external data file.
 */
export function assertSelfContained(info: Qcow2Info, path: string): void {
  const [kind, name] = info.backingFile !== undefined
    ? ["a backing file", info.backingFile]
    : info.dataFile !== undefined
    ? ["an external data file", info.dataFile]
    : [undefined, ""];
  if (kind === undefined) return;
  throw new ToolsmithError(
    "image_unsafe",
    `${path} refers to ${kind}: ${name || "without a name"}`,
    { hint: "merge them: qemu-img convert -O qcow2 IMAGE MERGED.qcow2" },
  );
}

/**
 * Looks at how the clusters of the image are stored.
 *
 * Needs `--allow-read` for the file.
 *
 * @param path The image.
 * @param maxTables How many tables of clusters are looked at, at most; they are
 * spread over the image.
 * @returns What was seen.
 * @throws {ToolsmithError} `image_invalid` when it is no QCOW2 image.
 */
export async function sampleClusters(
  path: string,
  maxTables = 256,
): Promise<Qcow2Clusters> {
  using file = await Deno.open(path);
  const { info, l1Offset, l1Entries } = await readHeader(file, path);
  const { clusterSize, fileSize } = info;
  const l1 = await readAt(file, l1Offset, l1Entries * 8);
  const tables: number[] = [];
  for (let at = 0; at + 8 <= l1.byteLength; at += 8) {
    const offset = Number(l1.getBigUint64(at) & OFFSET_BITS);
    if (offset > 0 && offset < fileSize) tables.push(offset);
  }
  const stride = Math.max(1, Math.ceil(tables.length / maxTables));
  const looked = tables.filter((_, index) => index % stride === 0);
  const found: Qcow2Clusters = {
    seen: tables.length === 0 ? 1 : looked.length / tables.length,
    plain: [],
    compressed: 0,
    compressedBytes: 0,
    tableBytes: tables.length * clusterSize + l1Entries * 8,
  };
  const extended = (info.incompatibleFeatures & EXTENDED_L2_BIT) !== 0n;
  // The count of 512-byte sectors stands above the offset, in the bits left.
  const sectorShift = BigInt(62 - (Math.log2(clusterSize) - 8));
  for (const table of looked) {
    const l2 = await readAt(file, table, clusterSize);
    for (let at = 0; at + 8 <= l2.byteLength; at += extended ? 16 : 8) {
      const entry = l2.getBigUint64(at);
      const offset = Number(entry & OFFSET_BITS);
      if ((entry & COMPRESSED_BIT) !== 0n) {
        const sectors = Number((entry & (COMPRESSED_BIT - 1n)) >> sectorShift);
        found.compressed++;
        found.compressedBytes += (sectors + 1) * 512;
      } else if (offset > 0 && offset < fileSize) found.plain.push(offset);
    }
  }
  return found;
}

async function readHeader(file: Deno.FsFile, path: string) {
  const fileSize = (await file.stat()).size;
  const view = await readAt(file, 0, MAX_HEADER);
  if (view.byteLength < 4 || view.getUint32(0) !== MAGIC) {
    throw invalid(path, "is not a QCOW2 image", {
      hint: "convert it: qemu-img convert -O qcow2 IMAGE IMAGE.qcow2",
    });
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
  return { info, l1Offset, l1Entries };
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

async function readAt(
  file: Deno.FsFile,
  offset: number,
  length: number,
): Promise<DataView> {
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
