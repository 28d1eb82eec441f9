/**
 * Brings an image from a registry, a server or this host into a directory, and
 * computes its SHA-256 in the same pass.
 *
 * @module
 */
import { basename, join } from "../path.ts";
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import type { ManifestImage } from "../manifest/manifest.ts";
import { registryOptions } from "../oci/registry.ts";
import { fileChunks, sha256 } from "../system/digest.ts";
import { fingerprint, fingerprintOf, isSame } from "../system/files.ts";
import { requireSpace } from "../system/free_space.ts";
import { isPortableName } from "../system/portable_name.ts";
import { writeSparse } from "../system/sparse.ts";
import { writeAll } from "../system/streams.ts";
import { oneLine } from "../system/text.ts";
import {
  begin,
  type FetchContext,
  type FetchedImage,
  type FetchOptions,
} from "./_context.ts";
import { openHttps } from "./_https.ts";
import { pullFromRegistry } from "./_registry.ts";

/** How much of a body without a length is written between two looks at the disk. */
const SPACE_STEP = 1024 * 1024;

export type { FetchedImage, FetchOptions };

/** What is used where nothing is asked for. */
const CONNECTIONS = 4;

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
    connections: connectionsOf(options),
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
  return await spool(context, chunks, { name: last, total, write: writeAll });
}

async function copyImage(
  context: FetchContext,
  path: string,
): Promise<FetchedImage> {
  const { signal } = context.registry;
  try {
    const { isFile, size, blocks } = await Deno.stat(path);
    if (!isFile) {
      throw new ToolsmithError(
        "file_unreadable",
        `Cannot hydrate from ${path}: it is not a file`,
        { hint: "name the .qcow2 itself in image.qcow2" },
      );
    }
    // Holes are kept: they take no room.
    await requireSpace(context.dir, Math.min(size, (blocks ?? size) * 512));
    const chunks = fileChunks(path, { signal });
    const file = { name: basename(path), total: size, write: writeSparse };
    return await spool(context, chunks, file);
  } catch (cause) {
    throw cause instanceof Deno.errors.NotFound ? missing(path, cause) : cause;
  }
}

/** Writes chunks to staging, and computes their digest in the same pass. */
async function spool(
  context: FetchContext,
  chunks: AsyncIterable<Uint8Array<ArrayBuffer>>,
  { name, total, write }: {
    name: string;
    total: number | null;
    write: typeof writeSparse;
  },
): Promise<FetchedImage> {
  const path = join(context.dir, cachedName(name));
  const progress = begin(context, { total });
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
      await write(file, chunk);
      bytes += chunk.length;
      progress.at(bytes);
      yield chunk;
    }
  })());
  // It may end in a hole.
  await file.truncate(bytes);
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

/** Ends in `.qcow2`, whatever the source calls a QCOW2. */
function cachedName(name: string): string {
  const cached = name.replace(/\.img$/i, ".qcow2");
  const plain = isPortableName(cached) && /^.{1,200}\.qcow2$/i.test(cached);
  return plain ? cached : "image.qcow2";
}

function connectionsOf({ connections, env }: FetchOptions): number {
  if (connections !== undefined) return connections;
  const text = (env ?? processEnvironment).get("TOOLSMITH_CONNECTIONS");
  if (!text) return CONNECTIONS;
  if (/^[1-9]\d?$/.test(text)) return Number(text);
  throw new ToolsmithError(
    "usage",
    `Cannot use TOOLSMITH_CONNECTIONS=${oneLine(text, 40)}`,
    { hint: "it is a number from 1 to 99" },
  );
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
