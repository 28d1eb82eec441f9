/**
 * What fetching an image needs, whatever its source.
 *
 * @module
 */
import type { Emit } from "../events.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import { formatSource } from "../manifest/source.ts";
import {
  startTransfer,
  type TransferProgress,
  type TransferStart,
} from "../oci/pull.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import type { RegistryOptions } from "../oci/registry.ts";
import type { Sha256 } from "../system/digest.ts";
import type { Fingerprint } from "../system/files.ts";
import { isPortableName } from "../system/portable_name.ts";
import type { RetryOptions } from "../system/retry.ts";

/** How a source is reached, and how often it is tried. */
export interface FetchOptions extends RegistryOptions {
  /** Retries after a transient failure. @default {3} */
  retries?: number;
  /** Pause before the second attempt, in milliseconds; it doubles. @default {1000} */
  retryDelayMs?: number;
  /**
   * How many connections an image of 64 MiB or more comes over; with 1 it comes
   * by `oras pull`, and only what was cut goes on by ranges.
   *
   * @default {undefined} `TOOLSMITH_CONNECTIONS`, or 4
   */
  connections?: number;
  /** The processor whose image of an index is wanted. @default {Deno.build.arch} */
  arch?: ImageArch;
}

/** An image that has arrived, and the digest that its bytes have. */
export interface FetchedImage {
  /** Its path. */
  path: string;
  /** Its file name; it ends in `.qcow2`. */
  name: string;
  /** Its size, in bytes. */
  bytes: number;
  /** SHA-256 of its bytes. */
  actual: Sha256;
  /** The processor that it is for, where its source says so. */
  arch?: ImageArch;
  /** The file whose bytes were hashed. */
  hashed: Fingerprint;
}

/** One call of {@linkcode fetchImage}. */
export interface FetchContext {
  /** The image that the manifest names. */
  image: ManifestImage;
  /** The directory to fill. */
  dir: string;
  /** Where events go. */
  emit: Emit;
  /** How the source is reached. */
  registry: RegistryOptions;
  /** How often it is tried. */
  retries: RetryOptions;
  /** The processor whose image of an index is wanted. */
  arch: ImageArch;
  /** How many connections there are at most. */
  connections: number;
  /** Whether the image's digest is known, and not yet to be found out. */
  pinned: boolean;
}

/** Reports the start of a transfer; returns how to report the rest. */
export function begin(
  { emit, image: { name: image, source } }: FetchContext,
  start: Omit<TransferStart, "image" | "source">,
): TransferProgress {
  return startTransfer(emit, { image, source: formatSource(source), ...start });
}

/** A name that ends in `.qcow2`, whatever the source calls a QCOW2. */
export function cachedName(name: string): string {
  const cached = name.replace(/\.img$/i, ".qcow2");
  const plain = isPortableName(cached) && /^.{1,200}\.qcow2$/i.test(cached);
  return plain ? cached : "image.qcow2";
}
