/** What all image sources share: the job, its result, and its events. */
import type { Emit, UpdateSize } from "../events.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import { type DownloadStart, reportDownloadStart } from "../oci/pull.ts";
import type { VerifiedSignature } from "../manifest/signature_rule.ts";
import type { TrustOptions } from "../signature/verify_signature.ts";
import type { Sha256 } from "../system/digest.ts";
import type { FileIdentity } from "../system/files.ts";
import type { PartFile } from "../system/part_file.ts";
import { isPortableFileName } from "../system/portable_name.ts";
import type { RetryOptions } from "../system/retry.ts";
import { hashPartFileWhileFilling } from "../transfer/file_digest.ts";

/** Network and retry options for fetching an image. */
export interface FetchOptions extends TrustOptions {
  /** Retries after a transient failure. @default {3} */
  retries?: number;
  /** Pause before the second attempt, in milliseconds; it doubles. @default {1000} */
  retryDelayMs?: number;
  /**
   * Number of connections for an image of 64 MiB or more. With 1, `oras pull`
   * transfers the image, and range requests only resume a partial download.
   *
   * @default {undefined} `TOOLSMITH_CONNECTIONS`, or 4
   */
  connections?: number;
  /** The architecture to select from an image index. @default {Deno.build.arch} */
  arch?: ImageArch;
}

/** An image whose digest may be unknown: `init` pins it then. */
export type ImageToFetch =
  & Omit<ManifestImage, "sha256">
  & Partial<Pick<ManifestImage, "sha256">>;

export interface FetchRequest extends FetchOptions {
  image: ImageToFetch;
  /** Is empty, or holds a partial download. */
  dir: string;
  base?: BaseImage;
  emit: Emit;
}

export interface FetchJob extends FetchRequest, RetryOptions {
  connections: number;
}

/** Downloads what a part file lacks, until the signal is aborted. */
export type PartDownload = (
  job: FetchJob & { onBytesWritten: () => void },
) => Promise<void>;

/** An older image to copy unchanged bytes from. */
export interface BaseImage {
  path: string;
  /** Its version, for messages. */
  name: string;
  /** Whether the user has chosen it, so that the copy need not be faster. */
  isGiven: boolean;
}

/** A fetched image, with the digest of its bytes; the caller compares that. */
export interface FetchedImage {
  path: string;
  /** File name for the cache, with the extension `.qcow2`. */
  fileName: string;
  bytes: number;
  sha256: Sha256;
  /** The image's architecture, if the source states one. */
  arch?: ImageArch;
  /** Who signed the image, if the manifest has a rule. */
  signature?: VerifiedSignature;
  /** Identity of the file whose bytes were hashed. */
  hashedFile: FileIdentity;
  /** Set if a part was copied from an older image. */
  update?: UpdateSize;
}

/** Emits `download_start`; returns the reporter of progress and end. */
export function reportTransferStart(
  { image: { name: image, source }, emit }: FetchJob,
  start: Omit<DownloadStart, "image" | "source">,
) {
  const origin = { image, source: formatImageSource(source) };
  return reportDownloadStart(emit, { ...origin, ...start });
}

/** Runs a download into a part file, and hashes the whole file meanwhile. */
export async function downloadIntoPart(
  job: FetchJob,
  part: PartFile,
  download: PartDownload,
): Promise<Sha256> {
  const { connections, signal } = job;
  const { size: total, presentBytes: resumed } = part;
  const progress = reportTransferStart(job, { total, resumed, connections });
  const onBytesWritten = () => progress.reportBytes(part.presentBytes);
  const fill = () => download({ ...job, onBytesWritten });
  const sha256 = await hashPartFileWhileFilling(part, signal, fill);
  progress.reportEnd(total - resumed);
  return sha256;
}

/** Replaces `.img` by `.qcow2`, and any unusable name by `image.qcow2`. */
export function toQcow2FileName(name: string): string {
  const cached = name.replace(/\.img$/i, ".qcow2");
  const plain = isPortableFileName(cached) && /^.{1,200}\.qcow2$/i.test(cached);
  return plain ? cached : "image.qcow2";
}
