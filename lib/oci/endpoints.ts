/**
 * The endpoints of a repository, its registry and mirrors, and a client for requests
 * to them. Each endpoint gets its own credentials, a redirect target gets none.
 */
import {
  createHttpClient,
  type HttpRequestInit,
} from "../system/http_client.ts";
import { findProxy } from "../system/find_proxy.ts";
import { sha256OfBytes, sha256ToDigest } from "../system/digest.ts";
import { readLimitedBody } from "../system/http_body.ts";
import { httpStatusError } from "../system/http_errors.ts";
import { fetchFollowingRedirects } from "../system/redirects.ts";
import { startStallTimer } from "../system/stall_timer.ts";
import { RangesUnavailableError } from "../transfer/byte_source.ts";
import { IMAGE_MANIFEST_MEDIA_TYPES, INDEX_MEDIA_TYPES } from "./artifact.ts";
import { hasNetPermission } from "./_permission_queries.ts";
import {
  type AuthorizedRepository,
  registryAuthorizer,
} from "./_registry_authorizer.ts";
import { findMirrors, type Mirror } from "./mirrors.ts";
import type { OciReference } from "./reference.ts";
import { type RegistryOptions, usesPlainHttp } from "./registry_options.ts";

/** A repository at a registry or a mirror, with its connection options. */
export interface Endpoint extends Mirror, AuthorizedRepository {
  /** Query of each request, such as `ns=ghcr.io` for a mirror. */
  query?: string;
}

export interface Endpoints {
  /** Tried before the registry, in this order. */
  mirrors: Endpoint[];
  registry: Endpoint;
}

export type RepositoryClient = Awaited<ReturnType<typeof repositoryClient>>;

const MAX_AUTH_RENEWALS = 2;
const BYTES_HEADERS = {
  accept: [...IMAGE_MANIFEST_MEDIA_TYPES, ...INDEX_MEDIA_TYPES].join(", "),
  "accept-encoding": "identity",
};

/**
 * Finds the registry and the mirrors of a repository. A mirror has its own CA and
 * credentials, or none; `onWarning` is called for each unsupported one.
 */
export async function findEndpoints(
  reference: OciReference,
  options: RegistryOptions,
  onWarning?: (message: string) => void,
): Promise<Endpoints> {
  const { registry: name, repository } = reference;
  const mirrors = await findMirrors(name, options.env, onWarning);
  const query = `ns=${encodeURIComponent(name)}`;
  return {
    mirrors: mirrors.map((mirror) => {
      const { host } = new URL(mirror.baseUrl);
      return { ...mirror, query, host, repository, options };
    }),
    registry: registryEndpoint(reference, options),
  };
}

export function registryEndpoint(
  { registry: host, repository }: OciReference,
  options: RegistryOptions,
): Endpoint {
  const scheme = usesPlainHttp(host, options) ? "http" : "https";
  const actual = host === "docker.io" ? "registry-1.docker.io" : host;
  const baseUrl = `${scheme}://${actual}/v2`;
  const { caFile } = options;
  return { baseUrl, host, repository, caFile, resolvesTags: true, options };
}

/**
 * Creates a client for requests to an endpoint, which disposing closes; sends no
 * request yet. Never prompts: a host without `--allow-net` is refused with a
 * {@linkcode RangesUnavailableError}.
 */
export async function repositoryClient(endpoint: Endpoint, connections = 1) {
  const { baseUrl, host, repository, caFile, query = "", options } = endpoint;
  // With HTTP/2, all ranges would share one connection.
  const pool = { http2: false, poolMaxIdlePerHost: connections };
  const client = await createHttpClient(caFile, pool);
  async function getAnonymously(url: URL, request: HttpRequestInit) {
    const proxy = findProxy(url);
    for (const hop of proxy ? [url, proxy] : [url]) {
      if (hasNetPermission(hop)) continue;
      const why = `--allow-net=${hop.host} is not granted`;
      throw new RangesUnavailableError(why);
    }
    return await client.fetch(url, request);
  }
  const registryUrl = new URL(baseUrl);
  const isRegistryUrl = (url: URL) => url.origin === registryUrl.origin;
  const authorizer = registryAuthorizer(endpoint, getAnonymously);

  async function get(
    path: string,
    { headers, ...request }: HttpRequestInit,
  ): Promise<[Response, URL]> {
    const url = new URL(`${baseUrl}/${repository}/${path}`);
    // A path may have a query of its own.
    if (query) url.search = query;
    for (let renewed = 0;; renewed++) {
      let sent: string | undefined;
      const send = async (at: URL) => {
        const all = new Headers(headers);
        sent = isRegistryUrl(at) ? await authorizer.header() : undefined;
        if (sent) all.set("authorization", sent);
        return await getAnonymously(at, { ...request, headers: all });
      };
      const result = await fetchFollowingRedirects(url, send, request.signal);
      const [response, at] = result;
      const isUnauthorized = response.status === 401 && isRegistryUrl(at);
      if (!isUnauthorized || renewed === MAX_AUTH_RENEWALS) return result;
      await response.body?.cancel();
      const challenges = response.headers.get("www-authenticate");
      await authorizer.renewAfter401(challenges, sent);
    }
  }

  async function getBytes(path: string, limit: number, shown?: string) {
    using timer = startStallTimer(`download ${host}`, options);
    const { signal } = timer;
    const [response] = await get(path, { headers: BYTES_HEADERS, signal });
    const { status, body } = response;
    if (status !== 200) {
      await body?.cancel();
      const name = shown ?? `${host}/${repository}/${path}`;
      const cause = httpStatusError(response, name);
      const why = `the server answered ${status}`;
      throw new RangesUnavailableError(why, { cause });
    }
    const bytes = await readLimitedBody(body, timer, { shown: host, limit });
    if (!bytes) {
      const why = `the file exceeds ${limit / 1024 / 1024} MiB`;
      throw new RangesUnavailableError(why);
    }
    const [, expected] = /\/(sha256:[^?]*)$/.exec(path) ?? [];
    const digest = sha256ToDigest(await sha256OfBytes(bytes));
    if (expected !== undefined && expected !== digest) {
      const why =
        `the server sent a file with the digest ${digest}, expected ${expected}`;
      throw new RangesUnavailableError(why);
    }
    return { bytes, digest };
  }

  return {
    isRegistryUrl,
    /** Requests a URL, such as a redirect target, without credentials. */
    getAnonymously,
    /**
     * Requests a path of the repository, such as `blobs/sha256:…`, with credentials if
     * the registry asks for them; follows redirects, and returns the final URL.
     */
    get,
    /**
     * Fetches a small file of the repository.
     *
     * @param path Path below the repository. If it ends in a digest, the bytes have it.
     * @param limit Maximum size, in bytes.
     * @param shown Name of the file in errors.
     * @throws {RangesUnavailableError} When the endpoint does not serve the file; the
     * cause is the error for its status.
     */
    getBytes,
    [Symbol.dispose]: () => client[Symbol.dispose](),
  };
}
