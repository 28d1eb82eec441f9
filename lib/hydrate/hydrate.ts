/**
 * Gets the image that a manifest names into the cache: verified, or not at all.
 *
 * @module
 */
import {
  type CachedFile,
  cacheEntry,
  findCache,
  type ImageEntry,
  type LockedEntry,
} from "../cache/entry.ts";
import { systemError, ToolsmithError, toToolsmithError } from "../errors.ts";
import { type Emit, emitter, type OnEvent } from "../events.ts";
import type { BootLoader } from "../image/boot_loader.ts";
import type { Manifest, ManifestImage } from "../manifest/manifest.ts";
import { formatSource } from "../manifest/source.ts";
import {
  asDigest,
  type Digest,
  fileChunks,
  sha256,
  transferEngine,
} from "../system/digest.ts";
import { fingerprint, isSame } from "../system/files.ts";
import { type FetchedImage, fetchImage, type FetchOptions } from "./fetch.ts";
import { placeFetched } from "./_place.ts";

/** What {@linkcode hydrate} takes. */
export interface HydrateOptions extends FetchOptions {
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  /** Use no network: the image is in the cache, or it is an error. @default {false} */
  offline?: boolean;
  /** Read the cached image again and compare its digest. @default {false} */
  verify?: boolean;
  /** Re-download the image even if it is cached. @default {false} */
  force?: boolean;
  /** Gets each event. @default {undefined} */
  onEvent?: OnEvent;
}

/** An image that is in the cache and verified. */
export interface HydrateResult {
  /** How it got there: it was there, or from a registry, a file, a server. */
  outcome: "cached" | "pulled" | "copied" | "downloaded";
  /** Its absolute path. */
  path: string;
  /** `sha256:` and the digest in hex. */
  digest: Digest;
  /** Size, in bytes. */
  bytes: number;
  /** What it boots with, where that is known. */
  boot?: BootLoader;
}

/**
 * Gets the image that a manifest names into the cache, and verifies its
 * SHA-256 on the way. An image that is there already, and untouched since it
 * was verified, is returned at once and without the network.
 *
 * Needs `--allow-read` and `--allow-write` for the cache; for `oci://`
 * `--allow-run=oras`; for `https://` `--allow-net` for the host, which lets
 * `oci://` go on where a transfer was cut, over several connections; to check the
 * free space `--allow-sys=statfs`, and to believe what the cache says of an image
 * `--allow-sys=uid`. To resume a transfer in a workspace's cache it needs both for
 * `$XDG_CACHE_HOME/toolsmith` (or `~/.cache/toolsmith`), too.
 *
 * @param manifest The manifest, from {@linkcode loadManifest}.
 * @param options Cache, network, cancelling, events.
 * @returns Where the image is, and how it got there.
 * @throws {ToolsmithError} With one of the codes in docs/troubleshooting.md.
 * Whatever is thrown, no partial image is in the cache.
 *
 * @example Hydrate, and print what happens
 * ```ts ignore
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
    const cache = await findCache(manifest.root, options);
    const context: HydrateContext = {
      image,
      digest: asDigest(sha256),
      entry: cacheEntry({ cache, image: name, sha256 }, options),
      options,
      emit: emitter(options.onEvent),
    };
    path = context.entry.dir;
    const there = await context.entry.lookUp();
    if (there?.trusted && !options.verify && !options.force) {
      return await cached(context, there);
    }
    if (!there) assertReachable(context);
    const locked = await lockOrRefusal(context);
    if (locked instanceof ToolsmithError) {
      return await hydrateReadOnly(context, locked);
    }
    using held = locked;
    return await hydrateLocked(context, held);
  } catch (error) {
    throw toToolsmithError(systemError(error, { path }));
  }
}

/** One call of {@linkcode hydrate}. */
interface HydrateContext {
  image: ManifestImage;
  digest: Digest;
  entry: ImageEntry;
  options: HydrateOptions;
  emit: Emit;
}

/** A cache that this user cannot write may still hold a good image. */
async function lockOrRefusal(
  { image, entry, options: { signal }, emit }: HydrateContext,
): Promise<LockedEntry | ToolsmithError> {
  try {
    return await entry.lock({
      signal,
      onWait: () =>
        emit({ type: "lock_wait", image: image.name, path: entry.lockPath }),
    });
  } catch (error) {
    const refused = error instanceof ToolsmithError &&
      error.code === "cache_unwritable";
    if (refused) return error;
    throw error;
  }
}

async function hydrateReadOnly(
  context: HydrateContext,
  refusal: ToolsmithError,
): Promise<HydrateResult> {
  const there = await context.entry.lookUp();
  if (!there || context.options.force) throw refusal;
  if (!await isStillGood(context, there)) throw refusal;
  return await cached(context, there);
}

async function hydrateLocked(
  context: HydrateContext,
  held: LockedEntry,
): Promise<HydrateResult> {
  const { image, digest, entry, emit, options } = context;
  // Whoever had the lock may have done the work.
  const there = await entry.lookUp();
  if (there && !options.force) {
    if (there.trusted && !options.verify) return await cached(context, there);
    if (await isStillGood(context, there)) {
      await held.renew(there);
      return await cached(context, there);
    }
  }
  assertReachable(context);
  await using staging = await held.stage();
  const fetched = await fetchImage(image, staging.dir, { ...options, emit });
  if (fetched.actual !== image.sha256) throw mismatch(context, fetched);
  const { signal } = options;
  const placed = await placeFetched(image, { staging, fetched, emit, signal });
  const outcome = OUTCOMES[image.source.kind];
  return { outcome, ...placed, digest, bytes: fetched.bytes };
}

const OUTCOMES = {
  oci: "pulled",
  https: "downloaded",
  file: "copied",
} as const;

async function cached(
  { image, digest, entry, emit }: HydrateContext,
  { path, bytes, record }: CachedFile,
): Promise<HydrateResult> {
  await entry.touch();
  emit({ type: "cache_hit", image: image.name, path, digest });
  return { outcome: "cached", path, digest, bytes, boot: record?.boot };
}

/** Reads an image whose record does not fit, or does not suffice. */
async function isStillGood(
  { image: { name: image }, digest, emit, options }: HydrateContext,
  { path, bytes, suspect, found }: CachedFile,
): Promise<boolean> {
  if (suspect) {
    const message = `The image is read at each start, as ${suspect}`;
    emit({ type: "warning", message });
  }
  const { verify, env, signal } = options;
  // --verify checks with another implementation than the one on arrival.
  const engine = verify ? "std" : transferEngine(bytes, env);
  const actual = asDigest(await sha256(fileChunks(path, { signal }), engine));
  const unchanged = isSame(await fingerprint(path), found);
  if (actual === digest && unchanged) {
    emit({ type: "checksum_verified", image, digest, bytes });
    return true;
  }
  const reason = unchanged
    ? `its digest is ${actual}`
    : "it changed while it was read";
  emit({ type: "cache_corrupt", image, path, reason });
  return false;
}

/** Demands that the image's source can be used. */
function assertReachable({ image, entry, options }: HydrateContext): void {
  if (!options.offline || image.source.kind === "file") return;
  throw new ToolsmithError(
    "offline_miss",
    `Cannot hydrate ${image.name} offline: no good image in ${entry.dir}`,
    { hint: "run once without --offline, or copy the cache from another host" },
  );
}

function mismatch(
  { image }: HydrateContext,
  { actual }: FetchedImage,
): ToolsmithError {
  const source = formatSource(image.source);
  return new ToolsmithError(
    "checksum_mismatch",
    `Checksum mismatch for ${source}: expected ${image.sha256}, actual ${actual}`,
    {
      hint:
        "nothing was kept; if the image was published again, set image.qcow2_sha256 to the actual digest, else find out who changed it",
    },
  );
}
