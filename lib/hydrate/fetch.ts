/**
 * Brings an image from a registry, a server or this host into a directory, and
 * computes its SHA-256 in the same pass.
 *
 * @module
 */
import { basename, join } from "@std/path";
import {
  type Artifact,
  type ImageLayer,
  selectImageLayer,
} from "../oci/artifact.ts";
import { fileChunks, type Sha256, sha256 } from "../system/digest.ts";
import { requireSpace } from "../system/free_space.ts";
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import { openHttps } from "./_https.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import { type Oras, oras, type RegistryOptions } from "../oci/oras.ts";
import { formatSource } from "../manifest/source.ts";
import type { OciReference } from "../oci/reference.ts";
import { retry, type RetryOptions } from "../system/retry.ts";

/** How a source is reached, and how patiently. */
export interface FetchOptions extends RegistryOptions {
  /** Further attempts after a failure that may pass. @default {3} */
  retries?: number;
  /** Pause before the second attempt, in milliseconds; it doubles. @default {1000} */
  retryDelayMs?: number;
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
}

/** One call of {@linkcode fetchImage}. */
interface FetchContext extends FetchOptions {
  image: ManifestImage;
  dir: string;
  emit: Emit;
}

/**
 * Brings an image from wherever it is into a directory.
 *
 * Needs what {@linkcode hydrate} needs.
 *
 * @param image The image that a manifest names.
 * @param dir An empty directory to fill.
 * @param options How to reach the source, and whom to tell.
 * @returns The file, and the digest that it has: the caller compares it.
 * @throws {ToolsmithError} With one of the codes in docs/troubleshooting.md.
 */
export function fetchImage(
  image: ManifestImage,
  dir: string,
  options: FetchOptions & { emit: Emit },
): Promise<FetchedImage> {
  const { source } = image;
  const context: FetchContext = { ...options, image, dir };
  switch (source.kind) {
    case "oci":
      return pullImage(context, source);
    case "https":
      return downloadImage(context, source.url);
    case "file":
      return copyImage(context, source.path);
  }
}

async function pullImage(
  context: FetchContext,
  reference: OciReference,
): Promise<FetchedImage> {
  const { emit, image } = context;
  const registry = oras(context);
  const patience = retryOptions(context);
  warnOfHalfCredentials(context, reference);
  const artifact = await retry(
    () => registry.fetchManifest(reference),
    patience,
  );
  const layer = selectImageLayer(artifact, image.sha256);
  emit({
    type: "manifest_resolved",
    image: image.name,
    source: formatSource(reference),
    digest: artifact.digest,
    file: layer.title,
    bytes: layer.size,
  });
  await requireSpace(context.dir, totalBytes(artifact));
  return await retry(
    (attempt) => pullOnce(context, registry, artifact, layer, attempt),
    patience,
  );
}

/** Pulls, and computes the digest of the image while oras writes it. */
async function pullOnce(
  context: FetchContext,
  registry: Oras,
  artifact: Artifact,
  layer: ImageLayer,
  attempt: number,
): Promise<FetchedImage> {
  // Never onto what an attempt before left behind.
  const dir = join(context.dir, `pull-${attempt}`);
  await Deno.mkdir(dir);
  const total = totalBytes(artifact);
  const progress = transfer(context, total);
  const done = registry.pull(artifact.reference, dir, progress.at);
  const path = join(dir, ...layer.title.split("/"));
  const digest = sha256(fileChunks(path, { growingUntil: done }));
  const settled = digest.catch(() => {});
  try {
    await done;
  } catch (error) {
    await settled;
    await Deno.remove(dir, { recursive: true });
    throw error;
  }
  progress.end(total);
  const actual = await digest;
  const { isFile, size } = await Deno.lstat(path);
  if (!isFile || size !== layer.size) {
    throw new ToolsmithError(
      "checksum_mismatch",
      `${layer.title} has ${size} bytes after the pull, not ${layer.size}`,
      { hint: "try again" },
    );
  }
  return { path, name: basename(path), bytes: size, actual };
}

function totalBytes({ layers }: Artifact): number {
  return layers.reduce((sum, { size }) => sum + size, 0);
}

async function downloadImage(
  context: FetchContext,
  url: URL,
): Promise<FetchedImage> {
  using file = await openHttps(url, { ...context, ...retryOptions(context) });
  if (file.bytes !== null) await requireSpace(context.dir, file.bytes);
  const last = url.pathname.split("/").at(-1) ?? "";
  return await spool(context, file.chunks, last, file.bytes);
}

async function copyImage(
  context: FetchContext,
  path: string,
): Promise<FetchedImage> {
  const { signal } = context;
  try {
    const { isFile, size } = await Deno.stat(path);
    if (!isFile) {
      throw new ToolsmithError(
        "file_unreadable",
        `Cannot hydrate from ${path}: it is not a file`,
        { hint: "name the .qcow2 itself in image.qcow2" },
      );
    }
    await requireSpace(context.dir, size);
    const chunks = fileChunks(path, { signal });
    return await spool(context, chunks, basename(path), size);
  } catch (cause) {
    throw cause instanceof Deno.errors.NotFound ? missing(path, cause) : cause;
  }
}

/** Writes chunks to staging, and computes their digest in the same pass. */
async function spool(
  context: FetchContext,
  chunks: AsyncIterable<Uint8Array>,
  name: string,
  total: number | null,
): Promise<FetchedImage> {
  const plain = /^[^/\\:*?"<>|\p{Cc}]{1,200}\.qcow2$/iu.test(name);
  const path = join(context.dir, plain ? name : "image.qcow2");
  const progress = transfer(context, total);
  let bytes = 0;
  using file = await Deno.open(path, { write: true, createNew: true });
  const actual = await sha256((async function* () {
    for await (const chunk of chunks) {
      for (let at = 0; at < chunk.length;) {
        at += await file.write(chunk.subarray(at));
      }
      bytes += chunk.length;
      progress.at(bytes);
      yield chunk;
    }
  })());
  progress.end(bytes);
  return { path, name: basename(path), bytes, actual };
}

/** Tells how a transfer comes along. */
function transfer(context: FetchContext, total: number | null) {
  const { emit } = context;
  const image = context.image.name;
  const source = formatSource(context.image.source);
  const begun = performance.now();
  let told = begun;
  emit({ type: "download_start", image, source, bytes: total });
  return {
    at(bytes: number) {
      const now = performance.now();
      if (now - told < 100) return;
      told = now;
      emit({ type: "download_progress", image, bytes, total });
    },
    end(bytes: number) {
      const elapsedMs = Math.round(performance.now() - begun);
      emit({ type: "download_end", image, source, bytes, elapsedMs });
    },
  };
}

function retryOptions(context: FetchContext): RetryOptions {
  return {
    retries: context.retries,
    retryDelayMs: context.retryDelayMs,
    signal: context.signal,
    onRetry: ({ error, ...rest }) => {
      const { code, message } = error;
      const image = context.image.name;
      context.emit({ type: "retry", image, code, message, ...rest });
    },
  };
}

function warnOfHalfCredentials(
  context: FetchContext,
  { registry }: OciReference,
) {
  const env = context.env ?? processEnvironment;
  const user = env.get("GHCR_USERNAME") || env.get("GITHUB_ACTOR");
  if (registry !== "ghcr.io" || user || !env.get("GHCR_TOKEN")) return;
  context.emit({
    type: "warning",
    message:
      "GHCR_TOKEN is not used: set GHCR_USERNAME or GITHUB_ACTOR along with it",
  });
}

function missing(path: string, cause: unknown): ToolsmithError {
  const registry = /^[a-z0-9.-]+\.[a-z]+(?::\d+)?\/.+:/i.exec(
    path.split("/.toolsmith/").at(-1) ?? "",
  );
  return new ToolsmithError(
    "source_not_found",
    `Cannot hydrate from ${path}: no such file`,
    {
      hint: registry
        ? "if this is a registry reference, write oci:// in front of it"
        : "image.qcow2 is relative to the manifest's directory; a registry needs oci:// in front",
      cause,
    },
  );
}
