/** Brings a manifest's image into the cache, verified. */
import {
  type CachedImage,
  type CacheEntryHandle,
  cacheEntryHandle,
  resolveCacheDir,
} from "../cache/entry.ts";
import { listCache } from "../cache/maintenance.ts";
import { systemError, ToolsmithError, toToolsmithError } from "../errors.ts";
import { createEmitter, type Emit, type OnEvent } from "../events.ts";
import type { BootLoader } from "../image/boot_loader.ts";
import { statReadableFile } from "../image/inspect_image.ts";
import type { Manifest, ManifestImage } from "../manifest/manifest.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import type { VerifiedSignature } from "../manifest/signature_rule.ts";
import {
  type Digest,
  selectDigestEngine,
  sha256ToDigest,
} from "../system/digest.ts";
import { isSameFileIdentity, readFileIdentity } from "../system/files.ts";
import { basename } from "../path.ts";
import { hashFile } from "../transfer/file_digest.ts";
import { fetchImage, type FetchOptions } from "./fetch_image.ts";
import { addToCache } from "./_add_to_cache.ts";
import { resolveArtifact } from "./_registry_pull.ts";

/** What {@linkcode hydrate} takes. */
export interface HydrateOptions extends FetchOptions {
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  /** Use no network; fail if the image is not cached. @default {false} */
  offline?: boolean;
  /** Rehash the cached image and compare its digest. @default {false} */
  verify?: boolean;
  /** Fetch the image again even if it is cached. @default {false} */
  force?: boolean;
  /**
   * File of an older image to copy unchanged bytes from.
   *
   * @default {undefined} the image of the same name that was used last
   */
  base?: string;
  /** Called with each event. @default {undefined} */
  onEvent?: OnEvent;
}

/** A verified image in the cache. */
export interface HydrateResult {
  /** Cached already, or fetched from a registry, a local path, an HTTPS server. */
  outcome: "cached" | "pulled" | "copied" | "downloaded";
  /** Its absolute path. */
  path: string;
  /** `sha256:` and the digest in hex. */
  digest: Digest;
  /** Size, in bytes. */
  bytes: number;
  /** The image's boot loader, if known. */
  boot?: BootLoader;
  /** The rule of the manifest, if it has one, and who signed. */
  signature?: VerifiedSignature;
}

/**
 * Fetches a manifest's image into the cache and verifies its SHA-256. A cached
 * image that has not changed since its verification is returned at once, without
 * network access.
 *
 * Needs `--allow-read` and `--allow-write` for the cache; `--allow-run=oras` for
 * `oci://`; `--allow-net` for the host of an `https://` source, and of an `oci://`
 * source to resume downloads and use several connections; `--allow-sys=statfs` to
 * check the free space; `--allow-sys=uid` to trust verification records. Resuming
 * in a workspace's cache also needs `--allow-read` and `--allow-write` for
 * `$XDG_CACHE_HOME/toolsmith` (or `~/.cache/toolsmith`).
 *
 * @param manifest The manifest, from {@linkcode loadManifest}.
 * @param options Cache, network, cancellation, events.
 * @returns The image's path, and how it was obtained.
 * @throws {ToolsmithError} With one of the codes in docs/troubleshooting.md. The
 * cache never holds a partial image as an entry.
 *
 * @example Hydrate and print the events
 * ```ts no-run
 * import { hydrate, loadManifest } from "@fountain/toolsmith";
 *
 * const manifest = await loadManifest();
 * const image = await hydrate(manifest, {
 *   onEvent: (event) => console.error(event.type),
 * });
 * console.log(image.path);
 * ```
 */
export async function hydrate(
  manifest: Manifest,
  options: HydrateOptions = {},
): Promise<HydrateResult> {
  const { image } = manifest;
  const { name, sha256 } = image;
  let path: string | undefined;
  try {
    options.signal?.throwIfAborted();
    // A manifest's file has no such rule, but a program may pass one.
    if (image.signature && image.source.kind !== "oci") {
      const source = formatImageSource(image.source);
      const message =
        `Cannot use ${source}: only images in a registry have signatures`;
      const hint = "use an oci:// image, or remove image.signature";
      throw new ToolsmithError("signature_missing", message, { hint });
    }
    const { base } = options;
    if (base !== undefined) await statReadableFile(base, "base image");
    const cache = await resolveCacheDir(manifest.workspace, options);
    const entry = cacheEntryHandle({ cache, image: name, sha256 }, options);
    const digest = sha256ToDigest(sha256);
    const emit = createEmitter(options.onEvent);
    path = entry.dir;
    return await hydrateEntry({ image, digest, entry, cache, options, emit });
  } catch (error) {
    throw toToolsmithError(systemError(error, { fallbackPath: path }));
  }
}

interface HydrateCall {
  image: ManifestImage;
  digest: Digest;
  entry: CacheEntryHandle;
  cache: string;
  options: HydrateOptions;
  emit: Emit;
}

async function hydrateEntry(call: HydrateCall): Promise<HydrateResult> {
  const { image, digest, entry, emit, options } = call;
  const { verify, force, signal } = options;
  const before = await entry.lookUpImage();
  if (before?.trusted && !verify && !force) {
    const signature = recordedSignature(call, before);
    if (signature || !image.signature) {
      return await useCachedImage(call, before, signature);
    }
  }
  if (!before) throwIfOffline(call);
  let unwritable: unknown;
  using locked = await entry.lock({ emit, signal }).catch((error) => {
    if (error?.code !== "cache_unwritable") throw error;
    unwritable = error;
    return undefined;
  });
  // The process that held the lock may have fetched the image; and a cache that
  // this user cannot write may hold an intact one.
  const cached = await entry.lookUpImage();
  if (cached && !force) {
    const isTrusted = cached.trusted && !verify;
    if (isTrusted || await rehashAndCompare(call, cached)) {
      const signature = await verifyCachedSignature(call, cached);
      await locked?.renewVerificationRecord(cached, signature);
      return await useCachedImage(call, cached, signature);
    }
  }
  if (!locked) throw unwritable;
  throwIfOffline(call);
  await using staging = await locked.createOrResumeStaging();
  const base = await findBaseImage(call);
  const { dir } = staging;
  const fetched = await fetchImage({ ...options, image, dir, base, emit });
  if (fetched.sha256 !== image.sha256) {
    throw checksumMismatchError(image, fetched.sha256);
  }
  const added = await addToCache(image, fetched, staging, { emit, signal });
  const outcome = OUTCOME_BY_SOURCE_KIND[image.source.kind];
  const { bytes, signature } = fetched;
  return { outcome, ...added, digest, bytes, ...signature && { signature } };
}

/** Returns the image to update from: the given file, or one of the cache. */
async function findBaseImage(
  { image, digest, cache, options: { base, env } }: HydrateCall,
) {
  if (base !== undefined) {
    return { path: base, name: basename(base), isGiven: true };
  }
  const entries = await listCache(cache, { env });
  const older = entries.find((entry) =>
    entry.image === image.name && entry.trusted && entry.digest !== digest
  );
  if (!older) return undefined;
  const name = older.source?.split("/").at(-1)?.replace(/^[^@]*:/, "") ??
    older.digest;
  return { path: older.path, name, isGiven: false };
}

const OUTCOME_BY_SOURCE_KIND = {
  oci: "pulled",
  https: "downloaded",
  file: "copied",
} as const;

async function useCachedImage(
  { image, digest, entry, emit }: HydrateCall,
  { path, bytes, verificationRecord }: CachedImage,
  signature?: VerifiedSignature,
): Promise<HydrateResult> {
  await entry.markUsedAndCleanUp();
  emit({ type: "cache_hit", image: image.name, path, digest });
  const boot = verificationRecord?.boot;
  const found = { outcome: "cached" as const, path, digest, bytes, boot };
  return { ...found, ...signature && { signature } };
}

/** Returns the recorded signature if it satisfies the manifest's rule. */
function recordedSignature(
  { image }: HydrateCall,
  { trusted, verificationRecord }: CachedImage,
): VerifiedSignature | undefined {
  const { signer, ...recorded } = verificationRecord?.signature ?? {};
  const { signature: rule } = image;
  const isSameRule = rule && trusted &&
    JSON.stringify(recorded) === JSON.stringify(rule);
  return isSameRule && signer ? { ...rule, signer } : undefined;
}

/** Verifies a cached image's signature, unless that is recorded. */
async function verifyCachedSignature(call: HydrateCall, cached: CachedImage) {
  const { image, image: { source }, options, emit } = call;
  const recorded = recordedSignature(call, cached);
  if (recorded || !image.signature || source.kind !== "oci") return recorded;
  throwIfOffline(call, "signature");
  const request = { ...options, image, emit };
  return (await resolveArtifact(request, source)).signature;
}

async function rehashAndCompare(
  { image: { name: image }, digest, emit, options }: HydrateCall,
  { path, bytes, untrustedReason, fileIdentity }: CachedImage,
): Promise<boolean> {
  if (untrustedReason) {
    const message =
      `Rehashing image ${image} at each start because ${untrustedReason}`;
    emit({ type: "warning", message });
  }
  const { verify, env, signal } = options;
  // --verify uses another implementation than the one that hashed the download.
  const engine = verify ? "std" : selectDigestEngine(bytes, env);
  const { sha256 } = await hashFile(path, { engine, signal });
  const actual = sha256ToDigest(sha256);
  const identity = await readFileIdentity(path);
  const unchanged = isSameFileIdentity(identity, fileIdentity);
  if (actual === digest && unchanged) {
    emit({ type: "checksum_verified", image, digest, bytes });
    return true;
  }
  const reason = unchanged
    ? `the digest is ${actual}`
    : "the file changed while it was read";
  emit({ type: "cache_corrupt", image, path, reason });
  return false;
}

function throwIfOffline(
  { image, entry, options }: HydrateCall,
  missing: "image" | "signature" = "image",
): void {
  if (!options.offline || image.source.kind === "file") return;
  const message =
    `Cannot hydrate ${image.name} offline: no verified ${missing} in ${entry.dir}`;
  const hint =
    "run once without --offline, or copy the cache from another host";
  throw new ToolsmithError("offline_miss", message, { hint });
}

function checksumMismatchError(image: ManifestImage, actual: string) {
  const source = formatImageSource(image.source);
  const message =
    `Checksum mismatch for ${source}: expected ${image.sha256}, actual ${actual}`;
  const hint =
    "if the image was republished, use the actual digest as image.qcow2_sha256 in the manifest or as --sha256; otherwise find out who changed the image";
  return new ToolsmithError("checksum_mismatch", message, { hint });
}
