/**
 * Inspects an image before it is published: its format, and whether it depends on
 * other files.
 *
 * @module
 */
import { systemError, ToolsmithError } from "../errors.ts";
import { readFileAt } from "../system/files.ts";
import {
  assertSelfContained,
  CLUSTER_OFFSET_MASK,
  COMPRESSED_CLUSTER_BIT,
  type Qcow2Header,
  readQcow2HeaderFrom,
} from "./qcow2_header.ts";

/** Result of {@linkcode inspectImage}. */
export interface ImageInspection {
  /** Size of the file, in bytes. */
  bytes: number;
  /** Size of the disk that the guest sees, in bytes. */
  virtualSize: number;
  /** Whether most clusters are compressed, estimated from a few tables. */
  compressed: boolean;
  /** Size of the file's holes, in bytes; `null` if the system does not report it. */
  sparseBytes: number | null;
  /** Modification time of the file. */
  modified: Date | null;
  /** Warnings to show before the image is published. */
  warnings: string[];
}

/** Bytes to read of one table. */
const SAMPLE_BYTES = 64 * 1024;
const MAX_SAMPLED_L2_TABLES = 8;
// GitHub documents 10 GB per layer; larger ones are reported to work.
const GHCR_LAYER_LIMIT_BYTES = 10 * 1000 ** 3;

/**
 * Inspects a QCOW2 image before it is published.
 *
 * Needs `--allow-read` for the file.
 *
 * @returns Sizes, compression and warnings.
 * @throws {ToolsmithError} `source_not_found`, `file_unreadable`,
 * `image_invalid` when the file is not QCOW2 or is encrypted, `image_unsafe` when
 * the image refers to another file.
 */
export async function inspectImage(path: string): Promise<ImageInspection> {
  const stat = await statReadableFile(path, "image");
  using file = await Deno.open(path);
  const header = await readQcow2HeaderFrom(file, path);
  assertSelfContained(header, path);
  const { encryption, virtualSize } = header;
  if (encryption) {
    throw new ToolsmithError(
      "image_invalid",
      `${path} is encrypted (${encryption}): Toolsmith boots only unencrypted images`,
      { hint: "use a decrypted copy of the image" },
    );
  }
  const compressed = await isMostlyCompressed(file, header);
  const warnings: string[] = [];
  if (stat.size > GHCR_LAYER_LIMIT_BYTES) {
    const size = (stat.size / 1000 ** 3).toFixed(1);
    warnings.push(
      `${path} has ${size} GB: ghcr.io documents limits of 10 GB per layer and 10 minutes per upload`,
    );
  }
  return {
    bytes: stat.size,
    virtualSize,
    compressed,
    sparseBytes: stat.blocks === null
      ? null
      : Math.max(0, stat.size - stat.blocks * 512),
    modified: stat.mtime,
    warnings,
  };
}

/**
 * Stats a file given by the user, following symbolic links, and checks that the file
 * can be opened.
 *
 * Needs `--allow-read` for the file.
 *
 * @param role The file's role in error messages, such as "image".
 * @throws {ToolsmithError} `source_not_found`, or `file_unreadable` for a directory
 * or a file without read permission.
 */
export async function statReadableFile(
  path: string,
  role: string,
): Promise<Deno.FileInfo> {
  let stat: Deno.FileInfo;
  try {
    stat = await Deno.stat(path);
    // stat succeeds without read permission.
    if (stat.isFile) (await Deno.open(path)).close();
  } catch (error) {
    throw toReadError(error, path, role);
  }
  if (stat.isFile) return stat;
  throw new ToolsmithError(
    "file_unreadable",
    `Cannot read ${role} ${path}: it is ${
      stat.isDirectory ? "a directory" : "not a regular file"
    }`,
    { hint: "pass the path of a file" },
  );
}

/** Counts the clusters in the first few L2 tables. */
async function isMostlyCompressed(
  file: Deno.FsFile,
  { l1Offset, l1EntryCount, extendedL2, clusterSize }: Qcow2Header,
): Promise<boolean> {
  const l1Bytes = Math.min(l1EntryCount * 8, SAMPLE_BYTES);
  const l1 = await readFileAt(file, l1Offset, l1Bytes);
  const tables: number[] = [];
  for (let at = 0; at + 8 <= l1.byteLength; at += 8) {
    if (tables.length === MAX_SAMPLED_L2_TABLES) break;
    const table = Number(l1.getBigUint64(at) & CLUSTER_OFFSET_MASK);
    if (table > 0) tables.push(table);
  }
  let [compressed, plain] = [0, 0];
  const l2Bytes = Math.min(clusterSize, SAMPLE_BYTES);
  for (const table of tables) {
    const l2 = await readFileAt(file, table, l2Bytes);
    for (let at = 0; at + 8 <= l2.byteLength; at += extendedL2 ? 16 : 8) {
      const entry = l2.getBigUint64(at);
      if ((entry & COMPRESSED_CLUSTER_BIT) !== 0n) compressed++;
      else if ((entry & CLUSTER_OFFSET_MASK) !== 0n) plain++;
    }
  }
  return compressed > plain;
}

function toReadError(error: unknown, path: string, role: string): unknown {
  const messagePrefix = `Cannot read ${role} ${path}`;
  if (error instanceof Deno.errors.NotFound) {
    return new ToolsmithError(
      "source_not_found",
      `${messagePrefix}: no such file`,
      { hint: "check the path; relative paths start at the current directory" },
    );
  }
  return systemError(error, { messagePrefix });
}
