/**
 * Reads the header of a QCOW2 image, and finds out whether the image depends on
 * other files: such an image would not work elsewhere, and QEMU would open
 * whatever file of the host it names.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import {
  COMPRESSED_BIT,
  compressedPlace,
  OFFSET_BITS,
  type Qcow2Info,
  readAt,
  readHeader,
} from "./_header.ts";

export type { Qcow2Info };

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

/** What leads to 128 GiB in clusters of the usual size. */
const MAX_TABLE_BYTES = 16 * 1024 * 1024;

/**
 * Looks at how the clusters of the image are stored. However many entries lead to
 * a table, it is read once, and a cluster that is not compressed counts once: the
 * size of the file bounds the cost, whatever its tables say.
 *
 * Needs `--allow-read` for the file.
 *
 * @param path The image.
 * @param maxTables How many tables of clusters are looked at, at most, and no
 * more than 16 MiB of them; they are spread over the image.
 * @returns What was seen.
 * @throws {ToolsmithError} `image_invalid` when it is no QCOW2 image.
 */
export async function sampleClusters(
  path: string,
  maxTables = 256,
): Promise<Qcow2Clusters> {
  using file = await Deno.open(path);
  const header = await readHeader(file, path);
  const { info, l1Offset, l1Entries, extended } = header;
  const { clusterSize, fileSize } = info;
  // The format aligns tables and clusters, so that no two of them overlap.
  const isPlace = (offset: number) =>
    offset > 0 && offset < fileSize && offset % clusterSize === 0;
  const l1 = await readAt(file, l1Offset, l1Entries * 8);
  const offsets: number[] = [];
  for (let at = 0; at + 8 <= l1.byteLength; at += 8) {
    const offset = Number(l1.getBigUint64(at) & OFFSET_BITS);
    if (isPlace(offset)) offsets.push(offset);
  }
  const tables = unique(offsets);
  const limit = Math.min(maxTables, MAX_TABLE_BYTES / clusterSize);
  const stride = Math.max(1, Math.ceil(tables.length / limit));
  const looked = tables.filter((_, index) => index % stride === 0);
  const plain: number[] = [];
  const found = { compressed: 0, compressedBytes: 0 };
  for (const table of looked) {
    const l2 = await readAt(file, table, clusterSize);
    for (let at = 0; at + 8 <= l2.byteLength; at += extended ? 16 : 8) {
      const entry = l2.getBigUint64(at);
      const offset = Number(entry & OFFSET_BITS);
      if ((entry & COMPRESSED_BIT) !== 0n) {
        found.compressed++;
        found.compressedBytes += compressedPlace(entry, clusterSize).room;
      } else if (isPlace(offset)) plain.push(offset);
    }
  }
  return {
    ...found,
    seen: tables.length === 0 ? 1 : looked.length / tables.length,
    plain: unique(plain),
    tableBytes: tables.length * clusterSize + l1Entries * 8,
  };
}

function unique(offsets: number[]): number[] {
  const sorted = Float64Array.from(offsets).sort();
  return [...sorted.filter((offset, nth) => offset !== sorted[nth - 1])];
}
