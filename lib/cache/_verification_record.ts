/**
 * The verification record `verified.json`: it spares the next run from rehashing
 * an unchanged image.
 */
import { join } from "../path.ts";
import type { UpdateSize } from "../events.ts";
import type { BootLoader } from "../image/boot_loader.ts";
import { type Digest, isSha256Digest } from "../system/digest.ts";
import {
  type FileIdentity,
  isFileIdentity,
  readSmallJsonObject,
  replaceFileAtomically,
} from "../system/files.ts";
import { isJsonObject } from "../system/json.ts";

/** What `verified.json` holds: the image file's identity when it was verified. */
export interface VerificationRecord extends FileIdentity {
  file: string;
  /** `sha256:` and the digest in hex. */
  digest: Digest;
  source: string;
  /** When it was verified, as an ISO 8601 time. */
  verified: string;
  /** Boot loader; absent in records of earlier versions. */
  boot?: BootLoader;
  /** Set if a part of the image was copied from an older one. */
  update?: UpdateSize;
  /** The satisfied rule and the signer, field by field. */
  signature?: Record<string, string | undefined>;
}

const KNOWN_ARCHES: unknown[] = ["x86_64", "aarch64", undefined];
const KNOWN_FIRMWARES: unknown[] = ["bios", "uefi", undefined];
const MAX_VERIFICATION_FILE_BYTES = 64 * 1024;

export function verificationRecordPath(dir: string): string {
  return join(dir, "verified.json");
}

/** Reads an entry's record; `undefined` if missing or malformed. */
export async function readVerificationRecord(
  dir: string,
): Promise<VerificationRecord | undefined> {
  const path = verificationRecordPath(dir);
  const json = await readSmallJsonObject(path, MAX_VERIFICATION_FILE_BYTES);
  return parseVerificationRecord(json ?? {});
}

/**
 * Writes the record of an entry that was just verified: into `tempDir`, then renamed
 * into the entry.
 */
export async function writeVerificationRecord(
  dir: string,
  image: Omit<VerificationRecord, "verified">,
  tempDir: string,
) {
  const record = { ...image, verified: new Date().toISOString() };
  const text = JSON.stringify(record, null, 2) + "\n";
  await replaceFileAtomically(verificationRecordPath(dir), text, { tempDir });
}

export function parseVerificationRecord(
  json: Record<string, unknown>,
): VerificationRecord | undefined {
  if (!isFileIdentity(json)) return undefined;
  const { size, mtime, ctime, inode } = json;
  const record: Partial<Record<keyof VerificationRecord, unknown>> = json;
  const { file, digest, source, verified, boot, signature, update } = record;
  const isValid = typeof file === "string" && /^[^/\\]+\.qcow2$/i.test(file) &&
    typeof digest === "string" && isSha256Digest(digest) &&
    typeof source === "string" && typeof verified === "string";
  if (!isValid) return undefined;
  return {
    ...{ file, digest, source, verified, size, mtime, ctime, inode },
    ...isBootLoaderRecord(boot) && { boot },
    ...isSignatureRecord(signature) && { signature },
    ...isUpdateSize(update) && { update },
  };
}

function isSignatureRecord(value: unknown): value is Record<string, string> {
  return isJsonObject(value) &&
    Object.values(value).every((text) => typeof text === "string");
}

function isUpdateSize(value: unknown): value is UpdateSize {
  return isJsonObject(value) && typeof value.from === "string" &&
    typeof value.bytes === "number" && typeof value.total === "number";
}

/** An unknown boot loader is dropped, and detected again when needed. */
function isBootLoaderRecord(value: unknown): value is BootLoader {
  if (!isJsonObject(value)) return false;
  const { arch, firmware, ...more } = value;
  return KNOWN_ARCHES.includes(arch) && KNOWN_FIRMWARES.includes(firmware) &&
    Object.keys(more).length === 0;
}
