/** A snapshot's files, and the metadata that records their identities. */
import { join } from "../path.ts";
import {
  allocatedBytes,
  type FileIdentity,
  isFileIdentity,
  orIfNotFound,
  readSmallJsonObject,
  toFileIdentity,
} from "../system/files.ts";

const MAX_METADATA_BYTES = 64 * 1024;

/** The files besides the metadata, in the order in which they are committed. */
export const SNAPSHOT_PARTS = ["disk", "memory", "state"] as const;

/** A file of a snapshot: disk overlay, guest memory, or device state. */
export type SnapshotPart = typeof SNAPSHOT_PARTS[number];

export type SnapshotMetadata = Record<SnapshotPart, FileIdentity>;

export function snapshotPartPath(dir: string, key: string, part: SnapshotPart) {
  return join(dir, `${key}.${part === "disk" ? "qcow2" : part}`);
}

/** Returns the identities of the files that exist, and their total size on disk. */
export async function statSnapshotParts(dir: string, key: string) {
  const identities: Partial<SnapshotMetadata> = {};
  let bytes = 0;
  for (const part of SNAPSHOT_PARTS) {
    const path = snapshotPartPath(dir, key, part);
    const stat = await orIfNotFound(Deno.lstat(path));
    if (!stat?.isFile) continue;
    identities[part] = toFileIdentity(stat);
    bytes += allocatedBytes(stat);
  }
  return { identities, bytes };
}

/** Reads a snapshot's metadata; `undefined` if missing, malformed or outdated. */
export async function readSnapshotMetadata(
  path: string,
): Promise<SnapshotMetadata | undefined> {
  const json = await readSmallJsonObject(path, MAX_METADATA_BYTES);
  return parseSnapshotMetadata(json ?? {});
}

/** Returns validated metadata, or `undefined` if a part is missing or invalid. */
export function parseSnapshotMetadata(
  { state, memory, disk }: Record<string, unknown>,
): SnapshotMetadata | undefined {
  return isFileIdentity(state) && isFileIdentity(memory) && isFileIdentity(disk)
    ? { state, memory, disk }
    : undefined;
}
