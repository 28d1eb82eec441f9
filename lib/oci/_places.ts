/**
 * The places that a repository can be read from: its registry, and mirrors.
 *
 * @module
 */
import { processEnvironment } from "../environment.ts";
import { httpClient } from "../system/http_client.ts";
import { readCredentials } from "./_docker_config.ts";
import { type RegistryGet, registryGet } from "./_registry_get.ts";
import type { Mirror } from "./mirrors.ts";
import type { OciReference } from "./reference.ts";
import { isPlainHttp, type RegistryOptions } from "./registry.ts";

/** Where an artifact may come from. */
export interface Places {
  /** Whose repository it is. */
  reference: OciReference;
  /** How the registry is reached. */
  registry: RegistryOptions;
  /** Asked before the registry, in this order. */
  mirrors: Mirror[];
}

/** One of the places, and how it is reached. */
export interface Place {
  /** The address that paths of the API follow. */
  base: string;
  /** Sent as the query of each request. */
  query?: string;
  /** What its credentials are kept under. */
  host: string;
  /** The repository's path. */
  repository: string;
  /** A PEM file with the certificate authority to trust. */
  caFile?: string;
  /** Whether it may say which manifest a tag names. */
  resolves: boolean;
  /** Time limits, cancelling, environment. */
  registry: RegistryOptions;
}

/** Time without an answer after which a request is aborted, in milliseconds. */
export const STALL_MS = 60_000;

/** The same where the question is not worth as long a wait. */
export const PROBE_MS = 10_000;

/** The registry itself. */
export function registryPlace({ reference, registry }: Places): Place {
  const { registry: host, repository } = reference;
  const scheme = isPlainHttp(host, registry) ? "http" : "https";
  const actual = host === "docker.io" ? "registry-1.docker.io" : host;
  const base = `${scheme}://${actual}/v2`;
  const { caFile } = registry;
  return { base, host, repository, caFile, resolves: true, registry };
}

/** Its mirrors; each has its own authority and credentials, or none. */
export function mirrorPlaces(
  { reference, registry, mirrors }: Places,
): Place[] {
  const { registry: name, repository } = reference;
  const query = `ns=${encodeURIComponent(name)}`;
  return mirrors.map((mirror) => {
    const { host } = new URL(mirror.base);
    return { ...mirror, query, host, repository, registry };
  });
}

/** Prepares requests to a place; disposing closes its connections. */
export async function openPlace(
  { base, query, host, repository, caFile, registry }: Place,
  connections: number,
): Promise<RegistryGet & Disposable> {
  const { env = processEnvironment, signal, stallTimeoutMs } = registry;
  const client = await httpClient(caFile, {
    // Over HTTP/2 all ranges would share one connection.
    http2: false,
    poolMaxIdlePerHost: connections,
  });
  const methods = registryGet({
    base,
    query,
    repository,
    client,
    credentials: () => readCredentials(host, { env, signal }),
    signal,
    stallMs: stallTimeoutMs ?? STALL_MS,
  });
  return { ...methods, [Symbol.dispose]: () => client[Symbol.dispose]() };
}
