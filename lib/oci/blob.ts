/**
 * Gets one blob by ranges from a registry or its mirrors, where that is
 * possible: `oras pull` is there where it is not.
 *
 * @module
 */
import { processEnvironment } from "../environment.ts";
import { asDigest, type Sha256, sha256 } from "../system/digest.ts";
import { httpClient } from "../system/http_client.ts";
import type { PartFile } from "../system/part_file.ts";
import { isTransient, type RetryOptions } from "../system/retry.ts";
import { type BlobSource, blobSource } from "./_blob_source.ts";
import { readCredentials } from "./_docker_config.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";
import { readBlob } from "./_read_blob.ts";
import { isPermitted, registryGet } from "./_registry_get.ts";
import type { ImageLayer } from "./artifact.ts";
import type { Mirror } from "./mirrors.ts";
import type { OciReference } from "./reference.ts";
import { isPlainHttp, type RegistryOptions } from "./registry.ts";

/** Where a blob may come from. */
export interface BlobPlaces {
  /** Whose repository it is. */
  reference: OciReference;
  /** How the registry is reached. */
  registry: RegistryOptions;
  /** Asked before the registry, in this order. */
  mirrors: Mirror[];
}

/** What {@linkcode pullBlob} takes. */
export interface PullBlobOptions {
  /** The file to fill; what it has is not asked for again. */
  part: PartFile;
  /** How many connections there are at most. */
  connections: number;
  /** Retries after a transient failure; where bytes arrive, they start anew. */
  retries: RetryOptions;
  /** Called whenever bytes have been written. */
  onBytes: () => void;
  /** Called when a mirror is given up, with its host and the reason. */
  onMirrorFailed: (mirror: string, reason: string) => void;
}

/** The digest that the bytes have, or why they cannot come by ranges. */
export type BlobResult = { sha256: Sha256 } | { unavailable: string };

/**
 * Gets a blob by ranges, and computes its digest in the same pass, from the
 * bytes on the disk. A mirror that fails, in the middle too, costs nothing but
 * what it has sent: the next one, or the registry, goes on.
 *
 * Needs `--allow-net` for the hosts that are asked, `--allow-write` for the
 * file; what {@linkcode readCredentials} needs for a private repository.
 *
 * @param places Where it may come from.
 * @param layer The blob.
 * @param options The file, retries, and who is notified.
 * @returns Its digest, which the caller compares; or why there is none.
 * @throws {ToolsmithError} Those of a network, when retries are used up.
 */
export async function pullBlob(
  places: BlobPlaces,
  layer: ImageLayer,
  options: PullBlobOptions,
): Promise<BlobResult> {
  const { part, retries, connections, onBytes, onMirrorFailed } = options;
  const { stallTimeoutMs = 60_000 } = places.registry;
  const stop = new AbortController();
  const digest = sha256(part.chunks(stop.signal));
  digest.catch(() => {});
  const read = async (place: Place) => {
    using source = await openSource(place, layer, connections);
    await readBlob(source, part, {
      ...retries,
      connections,
      stallMs: stallTimeoutMs,
      onBytes,
    });
  };
  try {
    for (const place of mirrorPlaces(places)) {
      try {
        await read(place);
        return { sha256: await digest };
      } catch (error) {
        if (!isOfSource(error)) throw error;
        onMirrorFailed(new URL(place.base).host, error.message);
      }
    }
    await read(registryPlace(places));
    return { sha256: await digest };
  } catch (error) {
    if (!(error instanceof RangesUnavailable)) throw error;
    return { unavailable: error.message };
  } finally {
    stop.abort();
  }
}

/**
 * Tells whether any of the places may be asked: it is not worth to keep bytes
 * that cannot be gone on with.
 *
 * @param places The registry and its mirrors.
 * @returns `true` where one of their hosts is permitted. Nobody is asked.
 */
export async function mayAsk(places: BlobPlaces): Promise<boolean> {
  const all = [...mirrorPlaces(places), registryPlace(places)];
  for (const { base } of all) {
    if (await isPermitted(new URL(base))) return true;
  }
  return false;
}

/** A registry or mirror, and how it is reached. */
interface Place {
  base: string;
  query?: string;
  /** What its credentials are kept under. */
  host: string;
  repository: string;
  caFile?: string;
  registry: RegistryOptions;
}

function registryPlace({ reference, registry }: BlobPlaces): Place {
  const { registry: host, repository } = reference;
  const scheme = isPlainHttp(host, registry) ? "http" : "https";
  const actual = host === "docker.io" ? "registry-1.docker.io" : host;
  const base = `${scheme}://${actual}/v2`;
  return { base, host, repository, caFile: registry.caFile, registry };
}

/** A mirror has its own authority and credentials, or none. */
function mirrorPlaces({ reference, registry, mirrors }: BlobPlaces): Place[] {
  const { registry: name, repository } = reference;
  return mirrors.map(({ base, caFile }) => {
    const { host } = new URL(base);
    const query = `ns=${encodeURIComponent(name)}`;
    return { base, query, host, repository, caFile, registry };
  });
}

async function openSource(
  { base, query, host, repository, caFile, registry }: Place,
  { sha256, size }: ImageLayer,
  connections: number,
): Promise<BlobSource & Disposable> {
  const { env = processEnvironment, signal, stallTimeoutMs } = registry;
  const client = await httpClient(caFile, {
    // Over HTTP/2 all ranges would share one connection.
    http2: false,
    poolMaxIdlePerHost: connections,
  });
  const source = blobSource(
    registryGet({
      base,
      query,
      repository,
      client,
      credentials: () => readCredentials(host, { env, signal }),
      signal,
      stallMs: stallTimeoutMs ?? 60_000,
    }),
    { digest: asDigest(sha256), size },
  );
  return { ...source, [Symbol.dispose]: () => client.close() };
}

/** Whether another place may do better: a full disk is not a mirror's fault. */
function isOfSource(error: unknown): error is Error {
  const { code } = error as { code?: string };
  return error instanceof RangesUnavailable || isTransient(error) ||
    code === "dns_failed" || code === "tls_failed" ||
    code === "file_unreadable";
}
