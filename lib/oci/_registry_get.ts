/**
 * Sends requests to one registry or mirror: says who asks, and to nobody that
 * they are redirected to.
 *
 * @module
 */
import type { HttpClient, HttpRequest } from "../system/http_client.ts";
import { proxyFor } from "../system/proxy.ts";
import { fetchFollowing } from "../system/redirects.ts";
import type { RegistryCredentials } from "./_docker_config.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";
import { authorizer } from "./_token.ts";

/** A repository, and how it is reached. */
export interface RegistryAccess {
  /** The address that paths of the API follow, such as `https://ghcr.io/v2`. */
  base: string;
  /** The repository's path. */
  repository: string;
  /** Sent as the query of each request, such as `ns=ghcr.io` to a mirror. */
  query?: string;
  /** Whom to trust, and over how many connections. */
  client: HttpClient;
  /** Finds the credentials, once they are asked for. */
  credentials: () => Promise<RegistryCredentials>;
  /** Ends requests for tokens, which are for all connections. */
  signal?: AbortSignal;
  /** Time after which such a request is aborted, in milliseconds. */
  stallMs: number;
}

/** A request. */
export interface GetOptions {
  /** Its method. @default {"GET"} */
  method?: "HEAD";
  /** Its headers. */
  headers: HeadersInit;
  /** Ends it when aborted. */
  signal: AbortSignal;
}

/** A repository of a registry. */
export interface RegistryGet {
  /** Its host, as a person may see it. */
  readonly host: string;
  /**
   * Asks for a path of the repository, such as `blobs/sha256:…`.
   *
   * @returns The answer that is no redirect, and its address.
   */
  get(path: string, options: GetOptions): Promise<[Response, URL]>;
  /** Asks an address that the registry has redirected to. */
  getDirect(url: URL, options: GetOptions): Promise<Response>;
  /** Whether an address is the registry's own. */
  isOwn(url: URL): boolean;
}

const MAX_RENEWALS = 2;
/** What is neither is a SOCKS proxy. */
const PORTS: Record<string, number> = { "https:": 443, "http:": 80 };

/**
 * Prepares requests to a repository. Nothing is sent yet.
 *
 * Needs `--allow-net` for the registry's host, that of its token service, and
 * those that it redirects to. Nothing is asked for: a host that is not permitted
 * is refused.
 *
 * @param access The repository.
 * @returns Its methods; they throw {@linkcode RangesUnavailable}, and
 * `ToolsmithError`s: `redirect_refused`, and those of what may pass.
 */
export function registryGet(access: RegistryAccess): RegistryGet {
  const { base, repository, query = "", client, signal, stallMs } = access;
  const home = new URL(base);
  const { header, renew } = authorizer({
    repository,
    home,
    credentials: access.credentials,
    send: (url, request) => send(client, url, request),
    signal,
    stallMs,
  });
  const isOwn = (url: URL) => url.origin === home.origin;

  return {
    host: home.host,
    isOwn,
    getDirect: (url, options) => send(client, url, options),
    async get(path, { method, headers, signal }) {
      const url = new URL(`${base}/${repository}/${path}`);
      url.search = query;
      for (let renewed = 0;; renewed++) {
        let sent: string | undefined;
        const ask = async (at: URL) => {
          const all = new Headers(headers);
          sent = isOwn(at) ? await header() : undefined;
          if (sent) all.set("authorization", sent);
          return await send(client, at, { method, headers: all, signal });
        };
        const answer = await fetchFollowing(url, ask, signal);
        const [{ status, headers: said, body }, at] = answer;
        const unknown = status === 401 && isOwn(at);
        if (!unknown || renewed === MAX_RENEWALS) return answer;
        await body?.cancel();
        await renew(said.get("www-authenticate"), sent);
      }
    },
  };
}

/**
 * Tells whether a host may be asked, without asking the user.
 *
 * @param url An address of it.
 */
export async function isPermitted(url: URL): Promise<boolean> {
  const host = `${url.hostname}:${url.port || PORTS[url.protocol] || 1080}`;
  const { state } = await Deno.permissions.query({ name: "net", host });
  return state === "granted";
}

async function send(
  client: HttpClient,
  url: URL,
  request: HttpRequest,
): Promise<Response> {
  const proxy = proxyFor(url);
  for (const hop of proxy ? [url, proxy] : [url]) {
    if (!await isPermitted(hop)) {
      throw new RangesUnavailable(`--allow-net=${hop.host} is not granted`);
    }
  }
  return await client.fetch(url, request);
}
