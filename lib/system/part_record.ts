/**
 * What lies beside a file that is being filled: which of its bytes are there.
 *
 *     image.part           the file, as long as the whole will be
 *     image.part.json      its size and digest, and the extents that are durable
 *     image.part.written   the same of what is written: good until the next boot
 *
 * What a killed process has written is there, synced or not; what a power loss
 * leaves of it is not known.
 *
 * @module
 */
import { join } from "../path.ts";
import { type Extent, extentBytes, parseExtents } from "./extents.ts";
import { absentAs } from "./files.ts";
import { whyLinked } from "./ownership.ts";

/** The file. */
export const PART = "image.part";
/** The record of what is durable. */
export const PART_RECORD = "image.part.json";
/** The record of what is written. */
export const PART_JOURNAL = "image.part.written";

const MAX_RECORD = 1024 * 1024;
/** Clocks are set meanwhile; a boot takes longer. */
const BOOT_TOLERANCE_MS = 5000;

/** What a part file is to become. */
export interface PartIdentity {
  /** Size of the whole, in bytes. */
  size: number;
  /** `sha256:` and the digest of the whole in hex. */
  digest: string;
}

/** What is known of a part file. */
export interface PartRecord extends PartIdentity {
  /** The bytes that are there. */
  extents: Extent[];
  /** Another file of the directory that a program has filled from its start. */
  filled?: string;
  /** How many bytes are there, in whichever of the two. */
  bytes: number;
  /** When the last of them came. */
  used: Date;
}

/**
 * Reads what a part file in a directory has.
 *
 * Needs `--allow-read` for the directory, and `--allow-sys=osUptime` to believe
 * what was not yet synced.
 *
 * @param dir The directory.
 * @returns What is known of it; `undefined` where there is nothing to go on with.
 */
export async function readPartRecord(
  dir: string,
): Promise<PartRecord | undefined> {
  const part = await absentAs(undefined, Deno.lstat(join(dir, PART)));
  if (!part?.isFile) return undefined;
  const durable = await readNote(join(dir, PART_RECORD), part.size);
  const written = await readNote(join(dir, PART_JOURNAL), part.size);
  const isOfThisBoot = written?.booted !== undefined &&
    Math.abs(written.booted - (bootTime() ?? NaN)) < BOOT_TOLERANCE_MS &&
    (!durable || durable.digest === written.digest);
  // What is durable was written before.
  const note = isOfThisBoot && durable?.filled === undefined
    ? written
    : durable;
  if (!note) return undefined;
  const { size, digest, extents, used, filled } = note;
  const bytes = extentBytes(extents);
  if (filled === undefined) {
    return bytes > 0 ? { size, digest, extents, bytes, used } : undefined;
  }
  const path = join(dir, filled);
  if (await whyLinked(path, dir)) return undefined;
  const other = await absentAs(undefined, Deno.lstat(path));
  if (!other?.isFile || other.size > size) return undefined;
  return {
    ...{ size, digest, extents: [[0, other.size]], filled },
    ...{ bytes: other.size, used: other.mtime ?? used },
  };
}

/** One of the two records, if it is one of a file of that size. */
async function readNote(path: string, size: number) {
  const stat = await absentAs(undefined, Deno.lstat(path));
  if (!stat?.isFile || stat.size > MAX_RECORD) return undefined;
  const [line] = (await Deno.readTextFile(path)).split("\n");
  const { digest, filled, booted, ...rest } = parseObject(line);
  const extents = parseExtents(rest.extents, size);
  if (rest.size !== size || !extents || typeof digest !== "string") {
    return undefined;
  }
  return {
    size,
    digest,
    extents,
    filled: typeof filled === "string" ? filled : undefined,
    booted: typeof booted === "number" ? booted : undefined,
    used: stat.mtime ?? new Date(0),
  };
}

function parseObject(text: string): Record<string, unknown> {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

/**
 * When this host was booted.
 *
 * Needs `--allow-sys=osUptime`; nobody is asked for it.
 *
 * @returns The time in milliseconds since the epoch, if that may be known.
 */
export function bootTime(): number | undefined {
  const { state } = Deno.permissions.querySync({
    name: "sys",
    kind: "osUptime",
  });
  return state === "granted" ? Date.now() - Deno.osUptime() * 1000 : undefined;
}
