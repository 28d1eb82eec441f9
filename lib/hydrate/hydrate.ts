/**
 * Gets the image that a manifest names into the cache: verified, or not at all.
 *
 * @module
 */
import { resolve } from "@std/path";
import {
  asCacheError,
  type CachedFile,
  cacheDir,
  type CacheKey,
  entryDir,
  lockEntry,
  lockPath,
  lookUp,
  place,
  renewRecord,
  stage,
  touch,
} from "../cache/entry.ts";
import { asDigest, type Digest, fileChunks, sha256 } from "../system/digest.ts";
import { processEnvironment } from "../environment.ts";
import { ToolsmithError, toToolsmithError } from "../errors.ts";
import { type Emit, emitter, type OnEvent } from "../events.ts";
import { type FetchedImage, fetchImage, type FetchOptions } from "./fetch.ts";
import type { Manifest } from "../manifest/manifest.ts";
import { inspectQcow2 } from "../image/qcow2.ts";
import { formatSource } from "../manifest/source.ts";

/** What {@linkcode hydrate} takes. */
export interface HydrateOptions extends FetchOptions {
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  /** Use no network: the image is in the cache, or it is an error. @default {false} */
  offline?: boolean;
  /** Read the cached image again and compare its digest. @default {false} */
  verify?: boolean;
  /** Get the image anew although it is cached. @default {false} */
  force?: boolean;
  /** Told what happens. @default {undefined} */
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
}

/**
 * Gets the image that a manifest names into the cache, and verifies its
 * SHA-256 on the way. An image that is there already, and untouched since it
 * was verified, is returned at once and without the network.
 *
 * Needs `--allow-read` and `--allow-write` for the cache; for `oci://`
 * `--allow-run=oras`; for `https://` `--allow-net` for the host; to check the
 * free space `--allow-sys=statfs`.
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
  const env = options.env ?? processEnvironment;
  const context: HydrateContext = {
    manifest,
    options,
    emit: emitter(options.onEvent),
    key: {
      cache: resolve(options.cache ?? cacheDir(manifest.root, env)),
      image: manifest.image.name,
      sha256: manifest.image.sha256,
    },
  };
  try {
    options.signal?.throwIfAborted();
    const there = await lookUp(context.key);
    if (there?.trusted && !options.verify && !options.force) {
      return await cached(context, there);
    }
    if (!there && options.offline && manifest.image.source.kind !== "file") {
      throw offlineMiss(context);
    }
    return await hydrateLocked(context).catch((error) =>
      readOnly(context, there, error)
    );
  } catch (error) {
    throw toToolsmithError(error);
  }
}

/** One call of {@linkcode hydrate}. */
interface HydrateContext {
  manifest: Manifest;
  options: HydrateOptions;
  emit: Emit;
  key: CacheKey;
}

async function hydrateLocked(context: HydrateContext): Promise<HydrateResult> {
  const { key, emit, manifest: { image }, options } = context;
  using _lock = await lockEntry(key, {
    signal: options.signal,
    onWait: () =>
      emit({ type: "lock_wait", image: image.name, path: lockPath(key) }),
  });
  // Whoever had the lock may have done the work.
  const there = await lookUp(key);
  if (there && !options.force) {
    if (there.trusted && !options.verify) return await cached(context, there);
    if (await stillGood(context, there)) return await cached(context, there);
  }
  if (options.offline && image.source.kind !== "file") {
    throw offlineMiss(context);
  }
  await using staging = await stage(key).catch((cause) => {
    throw asCacheError(cause, key.cache);
  });
  const fetched = await fetchImage(image, staging.dir, { ...options, emit });
  const digest = asDigest(fetched.actual);
  if (fetched.actual !== image.sha256) throw mismatch(context, fetched);
  await inspectQcow2(fetched.path);
  const { bytes, path: from, name } = fetched;
  emit({ type: "checksum_verified", image: image.name, digest, bytes });
  const source = formatSource(image.source);
  const path = await place(key, staging, { path: from, name, source });
  emit({ type: "cache_placed", image: image.name, path, digest, bytes });
  const outcome = OUTCOMES[image.source.kind];
  return { outcome, path, digest, bytes };
}

const OUTCOMES = {
  oci: "pulled",
  https: "downloaded",
  file: "copied",
} as const;

async function cached(
  context: HydrateContext,
  { path, bytes }: CachedFile,
): Promise<HydrateResult> {
  await touch(context.key);
  const digest = asDigest(context.key.sha256);
  context.emit({ type: "cache_hit", image: context.key.image, path, digest });
  return { outcome: "cached", path, digest, bytes };
}

/** A cache that cannot be written still serves an image that is good. */
async function readOnly(
  context: HydrateContext,
  there: CachedFile | undefined,
  error: unknown,
): Promise<HydrateResult> {
  const unwritable = error instanceof ToolsmithError &&
    error.code === "cache_unwritable";
  if (!unwritable || !there || context.options.force) throw error;
  if (!await stillGood(context, there, { record: false })) throw error;
  return await cached(context, there);
}

/** Reads an image again whose stamp does not fit, or does not suffice. */
async function stillGood(
  context: HydrateContext,
  there: CachedFile,
  { record = true } = {},
): Promise<boolean> {
  const { key, emit, options: { signal } } = context;
  const actual = await sha256(fileChunks(there.path, { signal }));
  const digest = asDigest(actual);
  if (actual === key.sha256) {
    if (record) await renewRecord(key, there);
    const { bytes } = there;
    emit({ type: "checksum_verified", image: key.image, digest, bytes });
    return true;
  }
  emit({
    type: "cache_corrupt",
    image: key.image,
    path: there.path,
    reason: `its digest is ${digest}`,
  });
  return false;
}

function offlineMiss({ key, manifest }: HydrateContext): ToolsmithError {
  return new ToolsmithError(
    "offline_miss",
    `Cannot hydrate ${manifest.image.name} offline: no good image in ${
      entryDir(key)
    }`,
    { hint: "run once without --offline, or copy the cache from another host" },
  );
}

function mismatch(
  { key, manifest }: HydrateContext,
  fetched: FetchedImage,
): ToolsmithError {
  return new ToolsmithError(
    "checksum_mismatch",
    `Checksum mismatch for ${
      formatSource(manifest.image.source)
    }: expected ${key.sha256}, actual ${fetched.actual}`,
    {
      hint:
        "nothing was kept; if the image was published anew, set image.qcow2_sha256 to the actual digest, else find out who changed it",
    },
  );
}
