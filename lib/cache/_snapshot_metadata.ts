/**
 * The parts of a snapshot, and the metadata that says how they were.
 *
 * @module
 */
import { join } from "../path.ts";
import {
  absentAs,
  bytesOnDisk,
  type Fingerprint,
  fingerprintOf,
  isFingerprint,
  readPlainText,
} from "../system/files.ts";

const MAX_BYTES = 64 * 1024;

/** The files of a snapshot as they were when it was saved. */
export interface SnapshotMetadata {
  /** Devices, and memory that is not in a file of its own. */
  state: Fingerprint;
  /** The disk. */
  disk: Fingerprint;
  /** Memory that is mapped, if it is. */
  memory?: Fingerprint;
}

/** The files besides the metadata, in the order in which they are placed. */
export const PARTS = ["disk", "memory", "state"] as const;

/** One of them. */
export type Part = typeof PARTS[number];

/**
 * Names the file of a part.
 *
 * @param key The snapshot's key.
 * @param part The part.
 */
export function fileName(key: string, part: Part): string {
  return `${key}.${part === "disk" ? "qcow2" : part}`;
}

/**
 * Looks at the parts that are there.
 *
 * Needs `--allow-read` for the directory.
 *
 * @param dir The directory of snapshots.
 * @param key The snapshot's key.
 * @returns Their fingerprints, and what takes the sum of what some of them take
 * on the disk.
 */
export async function filesOf(dir: string, key: string) {
  const prints: Partial<SnapshotMetadata> = {};
  const sizes: Partial<Record<Part, number>> = {};
  for (const part of PARTS) {
    const path = join(dir, fileName(key, part));
    const stat = await absentAs(undefined, Deno.lstat(path));
    if (!stat?.isFile) continue;
    prints[part] = fingerprintOf(stat);
    sizes[part] = bytesOnDisk(stat);
  }
  const bytes = (parts: readonly Part[]) =>
    parts.reduce((sum, part) => sum + (sizes[part] ?? 0), 0);
  return { prints, bytes };
}

/**
 * Reads a snapshot's metadata; `undefined` where there is none.
 *
 * @param path The file.
 */
export async function readMetadata(
  path: string,
): Promise<SnapshotMetadata | undefined> {
  try {
    return parseMetadata(await readPlainText(path, MAX_BYTES) ?? "");
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return undefined;
  }
}

/** Reads the text of a snapshot's metadata; `undefined` where it is none. */
export function parseMetadata(text: string): SnapshotMetadata | undefined {
  try {
    const { state, memory, disk } = JSON.parse(text) ?? {};
    const whole = [state, disk].every(isFingerprint) &&
      (memory === undefined || isFingerprint(memory));
    return whole ? { state, memory, disk } : undefined;
  } catch {
    return undefined;
  }
}
