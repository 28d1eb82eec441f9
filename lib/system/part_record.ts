/**
 * Records of a part file: which of its bytes are present.
 *
 *     image.part           the part file, with the size of the complete file
 *     image.part.json      record: size, digest and durable extents
 *     image.part.written   journal: the same for written extents, until a reboot
 *
 * Bytes that a killed process wrote are present even if not synced; after a power
 * loss only synced bytes are.
 */
import { join } from "../path.ts";
import { countExtentBytes, type Extent, parseExtents } from "./extents.ts";
import { orIfNotFound, readSmallJsonObject } from "./files.ts";
import { symlinkEscapeReason } from "./ownership.ts";
import { isPermissionGranted } from "../environment.ts";

export const PART_FILE_NAME = "image.part";
export const DURABLE_EXTENTS_FILE = "image.part.json";
export const WRITTEN_EXTENTS_FILE = "image.part.written";

const MAX_RECORD_BYTES = 1024 * 1024;
/** Allows for clock adjustments, and is shorter than a reboot. */
const BOOT_TIME_SLACK_MS = 5000;

export interface ExpectedContent {
  size: number;
  /** `sha256:` and hex digits. */
  digest: string;
}

/**
 * Reads the records of a part file; `undefined` if there is nothing to resume. `filled`
 * is a file of the directory that an external program (oras) has written instead. The
 * journal is used only with `--allow-sys=osUptime`.
 */
export async function readPartRecord(dir: string) {
  const part = await orIfNotFound(Deno.lstat(join(dir, PART_FILE_NAME)));
  if (!part?.isFile) return undefined;
  const read = (name: string) => readExtentsFile(join(dir, name), part.size);
  const durable = await read(DURABLE_EXTENTS_FILE);
  const written = await read(WRITTEN_EXTENTS_FILE);
  if (durable?.filled !== undefined) {
    const path = join(dir, durable.filled);
    if (await symlinkEscapeReason(path, dir)) return undefined;
    const other = await orIfNotFound(Deno.lstat(path));
    if (!other?.isFile || other.size > part.size) return undefined;
    return toPartRecord(durable, other, [[0, other.size]]);
  }
  const isOfThisBoot = written &&
    Math.abs(written.booted - (hostBootTimeMs() ?? NaN)) < BOOT_TIME_SLACK_MS &&
    (!durable || durable.digest === written.digest);
  // The journal includes the durable bytes.
  const [record, name] = isOfThisBoot
    ? [written, WRITTEN_EXTENTS_FILE]
    : [durable, DURABLE_EXTENTS_FILE];
  if (!record) return undefined;
  // Unlike the part file, also written by an attempt that gets no byte.
  const file = await orIfNotFound(Deno.lstat(join(dir, name)));
  return toPartRecord(record, file ?? part, record.extents);
}

function toPartRecord(
  { size, digest, filled }: ExpectedContent & { filled?: string },
  file: Deno.FileInfo,
  extents: Extent[],
) {
  const bytes = countExtentBytes(extents);
  const modifiedAt = file.mtime ?? new Date(0);
  return bytes > 0
    ? { size, digest, extents, filled, bytes, modifiedAt }
    : undefined;
}

/** Reads a record or journal; `undefined` if malformed or of another size. */
async function readExtentsFile(path: string, size: number) {
  const json = await readSmallJsonObject(path, MAX_RECORD_BYTES) ?? {};
  const { digest, filled, booted } = json;
  const extents = parseExtents(json.extents, size);
  if (json.size !== size || !extents || typeof digest !== "string") {
    return undefined;
  }
  return {
    size,
    digest,
    extents,
    filled: typeof filled === "string" ? filled : undefined,
    booted: typeof booted === "number" ? booted : NaN,
  };
}

/** Boot time in epoch milliseconds; never prompts for the permission. */
export function hostBootTimeMs(): number | undefined {
  return isPermissionGranted({ name: "sys", kind: "osUptime" })
    ? Date.now() - Deno.osUptime() * 1000
    : undefined;
}
