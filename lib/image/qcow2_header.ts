/**
 * Reads QCOW2 headers, and rejects images that depend on other files: such an image
 * does not work elsewhere, and QEMU opens whatever host file the image names.
 *
 * Format: QEMU, docs/interop/qcow2.txt.
 */
import { systemError, ToolsmithError } from "../errors.ts";
import { readFileAt } from "../system/files.ts";
import { notQcow2Error } from "./detect_format.ts";

export interface Qcow2Header {
  /** Size of the disk that the guest sees, in bytes. */
  virtualSize: number;
  clusterSize: number;
  fileSize: number;
  compression: "zlib" | "zstd";
  encryption?: "aes" | "luks";
  /** Backing file, which unallocated clusters are read from, if any. */
  backingFile?: string;
  /** External data file, if any; `""` if unnamed. */
  dataFile?: string;
  l1Offset: number;
  l1EntryCount: number;
  /** Whether L2 entries have 16 bytes, with subclusters, instead of 8. */
  extendedL2: boolean;
}

export const QCOW2_MAGIC = 0x514649fb;
const KNOWN_INCOMPATIBLE_FEATURES = 0b11111n;
const DATA_FILE_BIT = 4n;
const COMPRESSION_METHOD_BIT = 8n;
const EXTENDED_L2_BIT = 16n;
const DATA_FILE_HEADER_ID = 0x44415441;
const MAX_HEADER_BYTES = 64 * 1024;
const MAX_L1_BYTES = 32 * 1024 * 1024;

/** Flag of an L2 entry for a compressed cluster. */
export const COMPRESSED_CLUSTER_BIT = 1n << 62n;
/** The bits of an L1 or L2 entry that hold an offset in the file. */
export const CLUSTER_OFFSET_MASK = 0x00fffffffffffe00n;

/**
 * Reads the header of a QCOW2 image and checks it against the size of the file. Rejects
 * a file that is not QCOW2, is truncated, or has unknown features.
 */
export async function readQcow2Header(path: string): Promise<Qcow2Header> {
  using file = await Deno.open(path);
  return await readQcow2HeaderFrom(file, path);
}

/**
 * Rejects an image that refers to other files (`image_unsafe`) or is encrypted
 * (`image_invalid`).
 */
export function assertBootableImage(
  { backingFile, dataFile, encryption }: Qcow2Header,
  path: string,
): void {
  const name = backingFile ?? dataFile;
  if (name !== undefined) {
    const kind = backingFile === undefined
      ? "an external data file"
      : "a backing file";
    const message = `${path} refers to ${kind}: ${name || "(unnamed)"}`;
    const hint =
      "merge both files: qemu-img convert -O qcow2 IMAGE MERGED.qcow2";
    throw new ToolsmithError("image_unsafe", message, { hint });
  }
  if (encryption === undefined) return;
  const message =
    `${path} is encrypted (${encryption}): Toolsmith boots only unencrypted images`;
  const hint = "use an unencrypted copy, made with qemu-img convert";
  throw new ToolsmithError("image_invalid", message, { hint });
}

export async function readQcow2HeaderFrom(
  file: Deno.FsFile,
  path: string,
): Promise<Qcow2Header> {
  const fileSize = (await file.stat()).size;
  const view = await readFileAt(file, 0, MAX_HEADER_BYTES).catch((cause) => {
    throw systemError(cause, { messagePrefix: `Cannot read ${path}` });
  });
  if (view.byteLength < 4 || view.getUint32(0) !== QCOW2_MAGIC) {
    const { buffer, byteLength } = view;
    throw notQcow2Error(new Uint8Array(buffer, 0, byteLength), path);
  }
  const invalid = (problem: string) =>
    new ToolsmithError("image_invalid", `${path} ${problem}`);
  const truncated = "is truncated in its header";
  if (view.byteLength < 72) throw invalid(truncated);
  const version = view.getUint32(4);
  if (version !== 2 && version !== 3) {
    throw invalid(`has the unknown QCOW2 version ${version}`);
  }
  if (version === 3 && view.byteLength < 104) throw invalid(truncated);
  const features = version === 3 ? view.getBigUint64(72) : 0n;
  if ((features & ~KNOWN_INCOMPATIBLE_FEATURES) !== 0n) {
    const shown = `0x${features.toString(16)}`;
    throw invalid(`has unknown incompatible features: ${shown}`);
  }
  const extendedL2 = (features & EXTENDED_L2_BIT) !== 0n;
  const clusterBits = view.getUint32(20);
  // Each of the 32 subclusters has at least 512 bytes, as a cluster has.
  if (clusterBits < (extendedL2 ? 14 : 9) || clusterBits > 21) {
    throw invalid(`has the invalid cluster size 2^${clusterBits}`);
  }
  const headerLength = version === 3 ? view.getUint32(100) : 72;
  const virtualSize = Number(view.getBigUint64(24));
  const l1Entries = view.getUint32(36);
  const l1Offset = Number(view.getBigUint64(40));
  const coveredBytes = l1Entries * (2 ** clusterBits / 8) * 2 ** clusterBits;
  if (coveredBytes / (extendedL2 ? 2 : 1) < virtualSize) {
    throw invalid("has an L1 table too small for its disk");
  }
  if (l1Entries * 8 > MAX_L1_BYTES || l1Offset + l1Entries * 8 > fileSize) {
    throw invalid("is truncated: its L1 table is missing");
  }
  const header: Qcow2Header = {
    virtualSize,
    clusterSize: 2 ** clusterBits,
    fileSize,
    compression: (features & COMPRESSION_METHOD_BIT) !== 0n &&
        headerLength > 104 && view.byteLength > 104 && view.getUint8(104) === 1
      ? "zstd"
      : "zlib",
    l1Offset,
    l1EntryCount: l1Entries,
    extendedL2,
  };
  const method = view.getUint32(32);
  if (method !== 0) header.encryption = method === 1 ? "aes" : "luks";
  const nameOffset = Number(view.getBigUint64(8));
  if (nameOffset !== 0) {
    header.backingFile = readHeaderText(view, nameOffset, view.getUint32(16));
  }
  const dataFile = findExternalDataFile(view, headerLength);
  if ((features & DATA_FILE_BIT) !== 0n || dataFile !== undefined) {
    header.dataFile = dataFile ?? "";
  }
  return header;
}

/** Walks the header extensions: type, length, and data padded to 8 bytes. */
function findExternalDataFile(
  view: DataView,
  headerLength: number,
): string | undefined {
  for (let at = headerLength; at + 8 <= view.byteLength;) {
    const [type, length] = [view.getUint32(at), view.getUint32(at + 4)];
    at += 8;
    if (type === 0) return undefined;
    if (type === DATA_FILE_HEADER_ID) return readHeaderText(view, at, length);
    at += Math.ceil(length / 8) * 8;
  }
  return undefined;
}

/** Reads a file name from the header; replaces control characters. */
function readHeaderText(view: DataView, offset: number, length: number) {
  const end = Math.min(offset + Math.min(length, 1023), view.byteLength);
  const bytes = new Uint8Array(view.buffer, 0, end).subarray(offset);
  // deno-lint-ignore no-control-regex
  return new TextDecoder().decode(bytes).replace(/[\x00-\x1f\x7f]/g, "?");
}
