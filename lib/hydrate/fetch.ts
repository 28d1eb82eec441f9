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
import { CONNECTIONS_RANGE, parseConnections } from "../oci/connections.ts";
import { registryOptions } from "../oci/registry.ts";
import { cloneFile } from "../system/clone.ts";
import { fileChunks } from "../system/digest.ts";
import { bytesOnDisk, removeTree } from "../system/files.ts";
import { requireSpace } from "../system/free_space.ts";
import { writeSparse } from "../system/sparse.ts";
import { oneLine } from "../system/text.ts";
import {
  cachedName,
  type FetchContext,
  type FetchedImage,
  type FetchOptions,
} from "./_context.ts";
import { downloadImage } from "./_download.ts";
import { pullFromRegistry } from "./_registry.ts";
import { hashClone, spool } from "./_spool.ts";

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
 * @param options How to reach the source, where events go, and whether the
 * image's digest is known and not yet to be found out.
 * @returns The file, and the digest that it has: the caller compares it.
 * @throws {ToolsmithError} With one of the codes in docs/troubleshooting.md.
 */
export function fetchImage(
  image: ManifestImage,
  dir: string,
  options: FetchOptions & { emit: Emit; pinned?: boolean },
): Promise<FetchedImage> {
  const { source } = image;
  const { emit, pinned = true } = options;
  const context: FetchContext = {
    image,
    dir,
    emit,
    pinned,
    registry: registryOptions(options),
    arch: options.arch ?? Deno.build.arch,
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

async function copyImage(
  context: FetchContext,
  path: string,
): Promise<FetchedImage> {
  const { signal } = context.registry;
  try {
    const stat = await Deno.stat(path);
    if (!stat.isFile) {
      throw new ToolsmithError(
        "file_unreadable",
        `Cannot hydrate from ${path}: it is not a file`,
        { hint: "name the .qcow2 itself in image.qcow2" },
      );
    }
    const name = cachedName(basename(path));
    const clone = join(context.dir, name);
    // Never onto what an interrupted run left there.
    await removeTree(clone);
    if (await cloneFile(path, clone)) return await hashClone(context, clone);
    // Holes are kept: they take no room.
    await requireSpace(context.dir, bytesOnDisk(stat));
    const chunks = fileChunks(path, { signal });
    const file = { name, total: stat.size, write: writeSparse };
    return await spool(context, chunks, file);
  } catch (cause) {
    throw cause instanceof Deno.errors.NotFound ? missing(path, cause) : cause;
  }
}

function connectionsOf({ connections, env }: FetchOptions): number {
  const text = connections === undefined
    ? (env ?? processEnvironment).get("TOOLSMITH_CONNECTIONS")
    : `${connections}`;
  if (!text) return CONNECTIONS;
  const count = parseConnections(text);
  if (count !== undefined) return count;
  const shown = oneLine(text, 40);
  throw new ToolsmithError(
    "usage",
    connections === undefined
      ? `Cannot use TOOLSMITH_CONNECTIONS=${shown}`
      : `Cannot use ${shown} connections`,
    { hint: `it is ${CONNECTIONS_RANGE}` },
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
