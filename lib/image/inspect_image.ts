/**
 * Inspects an image before it is published: its format, and whether it depends on
 * other files.
 */
import { systemError, ToolsmithError } from "../errors.ts";
import { allocatedBytes } from "../system/files.ts";
import { readL2Tables } from "./compressed_clusters.ts";
import {
  assertBootableImage,
  CLUSTER_OFFSET_MASK,
  COMPRESSED_CLUSTER_BIT,
  type Qcow2Header,
  readQcow2HeaderFrom,
} from "./qcow2_header.ts";

const SAMPLE_BYTES = 64 * 1024;
const MAX_SAMPLED_L2_TABLES = 8;
// GitHub documents 10 GB per layer; larger ones are reported to work.
const GHCR_LAYER_LIMIT_BYTES = 10 * 1000 ** 3;

/**
 * Rejects an image that {@linkcode assertBootableImage} rejects. Returns the values of
 * the event `image_inspected`, the time of the last change, and warnings to show.
 */
export async function inspectImage(path: string) {
  const stat = await statReadableFile(path, "image");
  using file = await Deno.open(path);
  const header = await readQcow2HeaderFrom(file, path);
  assertBootableImage(header, path);
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
    virtualSize: header.virtualSize,
    compressed,
    sparseBytes: stat.blocks === null ? null : stat.size - allocatedBytes(stat),
    modified: stat.mtime,
    warnings,
  };
}

/**
 * Stats a file given by the user, following symbolic links, and checks that the file
 * can be opened. `role` is the file's role in error messages, such as "image".
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
    const messagePrefix = `Cannot read ${role} ${path}`;
    if (!(error instanceof Deno.errors.NotFound)) {
      throw systemError(error, { messagePrefix });
    }
    const hint =
      "check the path; relative paths start at the current directory";
    const message = `${messagePrefix}: no such file`;
    throw new ToolsmithError("source_not_found", message, { hint });
  }
  if (stat.isFile) return stat;
  const kind = stat.isDirectory ? "a directory" : "not a regular file";
  const message = `Cannot read ${role} ${path}: it is ${kind}`;
  const hint = "pass the path of a file";
  throw new ToolsmithError("file_unreadable", message, { hint });
}

/** Estimates by the clusters in the first few L2 tables. */
async function isMostlyCompressed(
  file: Deno.FsFile,
  header: Qcow2Header,
): Promise<boolean> {
  const entryBytes = header.extendedL2 ? 16 : 8;
  let [compressed, plain, tables] = [0, 0, 0];
  for await (const l2 of readL2Tables(file, header, SAMPLE_BYTES)) {
    for (let at = 0; at + 8 <= l2.byteLength; at += entryBytes) {
      const entry = l2.getBigUint64(at);
      if ((entry & COMPRESSED_CLUSTER_BIT) !== 0n) compressed++;
      else if ((entry & CLUSTER_OFFSET_MASK) !== 0n) plain++;
    }
    if (++tables === MAX_SAMPLED_L2_TABLES) break;
  }
  return compressed > plain;
}
