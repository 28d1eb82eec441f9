/**
 * `verified.json`: what was verified, so that it need not be read again.
 *
 * @module
 */
import { join } from "../path.ts";
import type { BootLoader } from "../image/boot_loader.ts";
import type { Digest } from "../system/digest.ts";
import {
  type Fingerprint,
  isFingerprint,
  readPlainText,
  replaceFile,
} from "../system/files.ts";

/** What `verified.json` holds: the file as it was when it was verified. */
export interface VerificationRecord extends Fingerprint {
  /** Name of the image's file. */
  file: string;
  /** `sha256:` and the digest in hex. */
  digest: Digest;
  /** Where the image came from. */
  source: string;
  /** When it was verified, as an ISO 8601 time. */
  verified: string;
  /** What it boots with; absent where an earlier version placed it. */
  boot?: BootLoader;
}

const NAME = "verified.json";
const ARCHS: unknown[] = ["x86_64", "aarch64", undefined];
const FIRMWARES: unknown[] = ["bios", "uefi", undefined];
const MAX_BYTES = 64 * 1024;

/** The record's path in an entry. */
export function recordPath(dir: string): string {
  return join(dir, NAME);
}

/** Reads the record of an entry; one that cannot be read is none. */
export async function readRecord(
  dir: string,
): Promise<VerificationRecord | undefined> {
  try {
    return parseRecord(await readPlainText(recordPath(dir), MAX_BYTES) ?? "");
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return undefined;
  }
}

/**
 * Writes the record of an entry, whole or not at all.
 *
 * @param dir The entry's directory.
 * @param record The record.
 * @param staging A directory of its own on the way there.
 */
export async function writeRecord(
  dir: string,
  record: VerificationRecord,
  staging: string,
) {
  const text = formatRecord(record);
  await replaceFile(recordPath(dir), text, { via: staging });
}

/** Writes a record as text. */
export function formatRecord(record: VerificationRecord): string {
  return JSON.stringify(record, null, 2) + "\n";
}

/**
 * Reads the text of a record.
 *
 * @param text JSON.
 * @returns The record, or `undefined` where a field is not what it should be.
 */
export function parseRecord(text: string): VerificationRecord | undefined {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (!isFingerprint(json)) return undefined;
  const { size, mtime, ctime, inode } = json;
  const { file, digest, source, verified, boot } = json as unknown as Record<
    string,
    unknown
  >;
  const whole = typeof file === "string" && /^[^/\\]+\.qcow2$/i.test(file) &&
    isDigest(digest) && typeof source === "string" &&
    typeof verified === "string";
  if (!whole) return undefined;
  const record = { file, digest, source, verified, size, mtime, ctime, inode };
  return isBoot(boot) ? { ...record, boot } : record;
}

/** What is not understood is found out again. */
function isBoot(value: unknown): value is BootLoader {
  if (typeof value !== "object" || value === null) return false;
  const { arch, firmware, ...more } = value as Record<string, unknown>;
  return ARCHS.includes(arch) && FIRMWARES.includes(firmware) &&
    Object.keys(more).length === 0;
}

function isDigest(value: unknown): value is Digest {
  return typeof value === "string" && /^sha256:[0-9a-f]{64}$/.test(value);
}
