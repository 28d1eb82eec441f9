/**
 * Brings an image from a registry, a server or this host into a directory, and
 * computes its SHA-256 in the same pass.
 *
 * @module
 */
import { basename, join } from "@std/path";
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import { formatSource } from "../manifest/source.ts";
import { selectImageLayer } from "../oci/artifact.ts";
import { unusedTokenWarning } from "../oci/credentials.ts";
import { oras } from "../oci/oras.ts";
import {
  pullImage,
  startTransfer,
  totalBytes,
  type TransferProgress,
} from "../oci/pull.ts";
import type { OciReference } from "../oci/reference.ts";
import { type RegistryOptions, registryOptions } from "../oci/registry.ts";
import { fileChunks, type Sha256, sha256 } from "../system/digest.ts";
import {
  fingerprint,
  fingerprintOf,
  isSame,
  removeTree,
} from "../system/files.ts";
import { requireSpace } from "../system/free_space.ts";
import { isPortableName } from "../system/portable_name.ts";
import { retry, type RetryOptions } from "../system/retry.ts";
import { writeAll } from "../system/streams.ts";
import { openHttps } from "./_https.ts";

/** How a source is reached, and how often it is tried. */
export interface FetchOptions extends RegistryOptions {
  /** Retries after a transient failure. @default {3} */
  retries?: number;
  /** Pause before the second attempt, in milliseconds; it doubles. @default {1000} */
  retryDelayMs?: number;
}

/** How much of a body without a length is written between two looks at the disk. */
const SPACE_STEP = 1024 * 1024;

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
interface FetchContext {
  image: ManifestImage;
  dir: string;
  emit: Emit;
  registry: RegistryOptions;
  retries: RetryOptions;
}

/**
 * Brings an image from wherever it is into a directory.
 *
 * Needs what {@linkcode hydrate} needs.
 *
 * @param image The image that a manifest names.
 * @param dir An empty directory to fill.
 * @param options How to reach the source, and where events go.
 * @returns The file, and the digest that it has: the caller compares it.
 * @throws {ToolsmithError} With one of the codes in docs/troubleshooting.md.
 */
export function fetchImage(
  image: ManifestImage,
  dir: string,
  options: FetchOptions & { emit: Emit },
): Promise<FetchedImage> {
  const { source } = image;
  const { emit } = options;
  const context: FetchContext = {
    image,
    dir,
    emit,
    registry: registryOptions(options),
    retries: {
      retries: options.retries,
      retryDelayMs: options.retryDelayMs,
      signal: options.signal,
      onRetry({ error: { code, message }, attempt, attempts, delayMs }) {
        const retry = { attempt, attempts, delayMs };
        emit({ type: "retry", image: image.name, code, message, ...retry });
      },
    },
  };
  switch (source.kind) {
    case "oci":
      return pullFromRegistry(context, source);
    case "https":
      return downloadImage(context, source.url);
    case "file":
      return copyImage(context, source.path);
  }
}

async function pullFromRegistry(
  context: FetchContext,
  reference: OciReference,
): Promise<FetchedImage> {
  const { image, dir, emit, retries } = context;
  const env = context.registry.env ?? processEnvironment;
  const warning = unusedTokenWarning(reference.registry, env);
  if (warning) emit({ type: "warning", message: warning });
  const registry = oras(context.registry);
  const artifact = await retry(
    () => registry.fetchManifest(reference),
    retries,
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
  const total = totalBytes(artifact);
  await requireSpace(dir, total);
  return await retry(async (attempt) => {
    // Never onto what an attempt before left behind.
    const target = join(dir, `pull-${attempt}`);
    await Deno.mkdir(target);
    const progress = begin(context, total);
    try {
      const options = { layer, dir: target, progress };
      const { path, bytes, sha256 } = await pullImage(
        registry,
        artifact,
        options,
      );
      return { path, name: basename(path), bytes, actual: sha256 };
    } catch (error) {
      await removeTree(target);
      throw error;
    }
  }, retries);
}

async function downloadImage(
  context: FetchContext,
  url: URL,
): Promise<FetchedImage> {
  const { caFile, stallTimeoutMs } = context.registry;
  const options = { caFile, stallTimeoutMs, ...context.retries };
  using file = await openHttps(url, options);
  if (file.bytes !== null) await requireSpace(context.dir, file.bytes);
  const last = url.pathname.split("/").at(-1) ?? "";
  const { chunks, bytes: total } = file;
  return await spool(context, chunks, { name: last, total });
}

async function copyImage(
  context: FetchContext,
  path: string,
): Promise<FetchedImage> {
  const { signal } = context.registry;
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
    const named = { name: basename(path), total: size };
    return await spool(context, chunks, named);
  } catch (cause) {
    throw cause instanceof Deno.errors.NotFound ? missing(path, cause) : cause;
  }
}

/** Writes chunks to staging, and computes their digest in the same pass. */
async function spool(
  context: FetchContext,
  chunks: AsyncIterable<Uint8Array<ArrayBuffer>>,
  { name, total }: { name: string; total: number | null },
): Promise<FetchedImage> {
  const plain = isPortableName(name) && /^.{1,200}\.qcow2$/i.test(name);
  const path = join(context.dir, plain ? name : "image.qcow2");
  const progress = begin(context, total);
  let bytes = 0;
  let checked = 0;
  using file = await Deno.open(path, { write: true, createNew: true });
  const actual = await sha256((async function* () {
    for await (const chunk of chunks) {
      if (total === null && bytes >= checked) {
        // A body without a length may have no end: it must not fill the disk.
        await requireSpace(context.dir, SPACE_STEP);
        checked = bytes + SPACE_STEP;
      }
      await writeAll(file, chunk);
      bytes += chunk.length;
      progress.at(bytes);
      yield chunk;
    }
  })());
  progress.end(bytes);
  // The bytes that were hashed are of the file that is open: is it still there?
  if (!isSame(await fingerprint(path), fingerprintOf(await file.stat()))) {
    throw new ToolsmithError(
      "checksum_mismatch",
      `Cannot take ${path}: it was replaced while it was written`,
      { hint: "find out who else writes to the cache" },
    );
  }
  return { path, name: basename(path), bytes, actual };
}

function begin(
  { emit, image: { name: image, source } }: FetchContext,
  total: number | null,
): TransferProgress {
  return startTransfer(emit, { image, source: formatSource(source), total });
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
